# The trainer: lplb-train (float) and lplb-train-f64 (double, for exactness), programs of their own
# because only they need MPI and a BLAS; `lplb train` starts them. Left out, with a word why, where
# either is missing, and from thread sanitizer builds, where MPI's own races would drown ours.
if(LPLB_SANITIZE MATCHES "thread")
  return()
endif()
pkg_check_modules(OPENBLAS IMPORTED_TARGET openblas)
find_package(MPI COMPONENTS C)
find_package(ZLIB)
if(NOT OPENBLAS_FOUND OR NOT MPI_C_FOUND OR NOT ZLIB_FOUND)
  message(STATUS "lplb: no trainer (needs OpenBLAS: ${OPENBLAS_FOUND}, MPI: ${MPI_C_FOUND}, "
                 "zlib: ${ZLIB_FOUND})")
  return()
endif()
set(LPLB_HAVE_TRAIN ON)

file(GLOB LPLB_TRAIN_SOURCES CONFIGURE_DEPENDS src/train/*.c src/comm/mpi/*.c)
list(REMOVE_ITEM LPLB_TRAIN_SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/src/train/main.c)
foreach(kind f32 f64)
  add_library(lplb_train_${kind} STATIC ${LPLB_TRAIN_SOURCES})
  target_link_libraries(lplb_train_${kind} PUBLIC lplb_internal PkgConfig::OPENBLAS MPI::MPI_C
                        ZLIB::ZLIB)
  if(kind STREQUAL f64)
    target_compile_definitions(lplb_train_${kind} PUBLIC LPLB_TRAIN_F64)
  endif()
  string(REPLACE "-f32" "" program lplb-train-${kind})
  add_executable(${program} src/train/main.c)
  target_link_libraries(${program} PRIVATE lplb_train_${kind})
  install(TARGETS ${program} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endforeach()
