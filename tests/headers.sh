#!/bin/sh
# Every public header compiles alone, as C99 and as C++11, without a warning.
#   headers.sh INCLUDE_DIR CC [CXX]
set -u
include=$1 cc=$2 cxx=${3:-}
failed=0
for header in "$include"/lplb/*.h; do
    name=lplb/$(basename "$header")
    # ISO C wants at least one declaration in a translation unit.
    text="#include <$name>
extern int lplb_header_test;"
    echo "$text" | "$cc" -std=c99 -pedantic -Wall -Wextra -Werror -fsyntax-only \
        -I"$include" -x c - || { echo "$name does not compile as C99"; failed=1; }
    [ -n "$cxx" ] || continue
    echo "$text" | "$cxx" -std=c++11 -pedantic -Wall -Wextra -Werror -fsyntax-only \
        -I"$include" -x c++ - || { echo "$name does not compile as C++11"; failed=1; }
done
[ -n "$cxx" ] || echo "no C++ compiler: checked as C99 only"
exit $failed
