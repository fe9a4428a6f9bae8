# Turns text files into C strings. As a script: -DOUT=FILE.c -DHEADER=INCLUDED.h
# -DPAIRS=symbol=path,symbol=path,...
file(WRITE ${OUT}.new "/* Made by cmake/embed.cmake. */\n#include \"${HEADER}\"\n")
string(REPLACE "," ";" PAIRS "${PAIRS}")
foreach(pair ${PAIRS})
  string(REGEX MATCH "^([^=]+)=(.+)$" unused "${pair}")
  set(symbol ${CMAKE_MATCH_1})
  file(READ ${CMAKE_MATCH_2} bytes HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
  string(REGEX REPLACE "((0x..,){16})" "\\1\n" bytes "${bytes}")
  file(APPEND ${OUT}.new "const char ${symbol}[] = {\n${bytes}0};\n")
endforeach()
file(RENAME ${OUT}.new ${OUT})
