# Libraries beside liblplb for what it must not depend on: lplb_mpi, a communicator over MPI.
# Not under sanitizers, which have much to say about MPI itself.
if(LPLB_SANITIZE)
  return()
endif()
find_package(MPI COMPONENTS C QUIET)
if(MPI_C_FOUND)
  add_library(lplb_mpi SHARED src/comm/plugins/mpi.c)
  target_link_libraries(lplb_mpi PUBLIC lplb PRIVATE MPI::MPI_C)
  set_target_properties(lplb_mpi PROPERTIES VERSION ${PROJECT_VERSION}
                        SOVERSION ${PROJECT_VERSION_MAJOR} INSTALL_RPATH "$ORIGIN")
  install(TARGETS lplb_mpi LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT mpi)
endif()
