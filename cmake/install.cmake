# What `make install` puts under the prefix: the command, the library with a versioned soname,
# public headers, pkg-config and CMake package files, man pages.
include(CMakePackageConfigHelpers)
# What follows can be installed without the trainer and the plug-ins being built: `cmake --install
# build --component lplb`; those are the components train and mpi.
set(CMAKE_INSTALL_DEFAULT_COMPONENT_NAME lplb)
set(LPLB_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/lplb)

# The command finds its library relative to itself, so that any prefix works.
file(RELATIVE_PATH LPLB_BIN_TO_LIB /${CMAKE_INSTALL_BINDIR} /${CMAKE_INSTALL_LIBDIR})
set_target_properties(lplb_cli PROPERTIES INSTALL_RPATH "$ORIGIN/${LPLB_BIN_TO_LIB}")

install(TARGETS lplb_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS lplb EXPORT lplb LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET lplb_cuda)
  install(TARGETS lplb_cuda EXPORT lplb LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
install(DIRECTORY include/lplb DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

install(EXPORT lplb NAMESPACE lplb:: FILE lplbTargets.cmake DESTINATION ${LPLB_CMAKE_DIR})
configure_package_config_file(cmake/lplbConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/lplbConfig.cmake
                              INSTALL_DESTINATION ${LPLB_CMAKE_DIR})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/lplbConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/lplbConfig.cmake
        ${CMAKE_CURRENT_BINARY_DIR}/lplbConfigVersion.cmake DESTINATION ${LPLB_CMAKE_DIR})

file(RELATIVE_PATH LPLB_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(cmake/lplb.pc.in ${CMAKE_CURRENT_BINARY_DIR}/lplb.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/lplb.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
if(TARGET lplb_cuda)
  configure_file(cmake/lplb_cuda.pc.in ${CMAKE_CURRENT_BINARY_DIR}/lplb_cuda.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/lplb_cuda.pc
          DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()

# Man pages are the commands' own --help, so they cannot disagree with it. A target of their own:
# only `make install` needs them.
if(NOT CMAKE_CROSSCOMPILING)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS src/cli/cli.h)
  file(READ src/cli/cli.h LPLB_COMMAND_LINES)
  string(REGEX MATCHALL "X\\([a-z]+, \"[^\"]*\"" LPLB_COMMAND_LINES "${LPLB_COMMAND_LINES}")
  set(LPLB_MAN_PAGES)
  function(lplb_man_page page command summary)
    set(file ${CMAKE_CURRENT_BINARY_DIR}/man/${page}.1)
    add_custom_command(OUTPUT ${file} DEPENDS lplb_cli cmake/man.cmake
                       COMMAND ${CMAKE_COMMAND} -DLPLB=$<TARGET_FILE:lplb_cli> -DOUT=${file}
                               -DCOMMAND=${command} "-DSUMMARY=${summary}"
                               -DVERSION=${PROJECT_VERSION}
                               -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/man.cmake VERBATIM)
    set(LPLB_MAN_PAGES ${LPLB_MAN_PAGES} ${file} PARENT_SCOPE)
  endfunction()
  lplb_man_page(lplb "" "balance expert-parallel Mixture-of-Experts models")
  foreach(line ${LPLB_COMMAND_LINES})
    string(REGEX MATCH "X\\(([a-z]+), \"([^\"]*)\"" unused "${line}")
    lplb_man_page(lplb-${CMAKE_MATCH_1} ${CMAKE_MATCH_1} "${CMAKE_MATCH_2}")
  endforeach()
  add_custom_target(lplb_man DEPENDS ${LPLB_MAN_PAGES})
  install(FILES ${LPLB_MAN_PAGES} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 OPTIONAL)
else()
  add_custom_target(lplb_man) # the command cannot be run here to ask for its help
endif()
