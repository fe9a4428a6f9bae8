# One man page from a command's --help, kept line by line so that examples can be copied.
# As a script: -DLPLB=PROGRAM -DCOMMAND=plan (or empty) -DSUMMARY=... -DVERSION=... -DOUT=FILE.1
set(page lplb)
if(COMMAND)
  set(page lplb-${COMMAND})
endif()
execute_process(COMMAND ${LPLB} ${COMMAND} --help OUTPUT_VARIABLE help RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "${LPLB} ${COMMAND} --help: exit ${failed}")
endif()
# What roff would take for its own: backslashes, hyphens, and a dot or quote that begins a line.
string(REPLACE "\\" "\\e" help "${help}")
string(REPLACE "-" "\\-" help "${help}")
string(REGEX REPLACE "(^|\n)([.'])" "\\1\\\\&\\2" help "${help}")
string(TOUPPER ${page} title)
file(WRITE ${OUT} ".TH ${title} 1 \"\" \"lplb ${VERSION}\" \"lplb manual\"\n"
     ".SH NAME\n${page} \\- ${SUMMARY}\n.SH DESCRIPTION\n.nf\n${help}.fi\n"
     ".SH SEE ALSO\n.BR lplb (1)\n")
