# The Python package (pyproject.toml): the wheel carries the shared libraries beside the modules.
# Component `python` only; a plain `make install` does not touch Python.
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
