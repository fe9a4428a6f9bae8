#!/bin/sh
# Formatting, the source text's own rules and clang-tidy; every finding is an error.
#   scripts/lint.sh BUILD_FOLDER     (its compile_commands.json says how files are compiled)
set -eu
build=$1
cd "$(dirname "$0")/.."
failed=0
python3 scripts/tidy.py || failed=1

# Only what git knows or would add, or generated files would be held to our format.
git ls-files -co --exclude-standard '*.c' '*.h' >"$build/lint-files"
xargs clang-format-14 --dry-run --Werror <"$build/lint-files" || failed=1

# Files outside the present configuration (no CLP, say) have no compile command and are left out.
grep '\.c$' "$build/lint-files" | while read -r file; do
    ! grep -qF "$PWD/$file\"" "$build/compile_commands.json" || echo "$file"
done | xargs -P "$(nproc)" -n 4 clang-tidy -p "$build" --quiet 2>"$build/lint-errors" ||
    { failed=1; grep -v 'warnings generated' "$build/lint-errors" >&2 || true; }
[ $failed = 0 ] && echo "lint: $(wc -l <"$build/lint-files") files, no findings"
exit $failed
