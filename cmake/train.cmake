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
# On Debian 11 (Open MPI 4.1.0) training hangs when experts move among four ranks, why is
# not known; on Debian 12 (4.1.4) and 13 (5.0.7) it runs.
execute_process(COMMAND ${MPIEXEC_EXECUTABLE} --version OUTPUT_VARIABLE LPLB_MPI_VERSION
                ERROR_QUIET)
string(REGEX MATCH "(OpenRTE|Open MPI). ([0-9.]+)" LPLB_OPEN_MPI "${LPLB_MPI_VERSION}")
if(LPLB_OPEN_MPI AND CMAKE_MATCH_2 VERSION_LESS 4.1.1)
  message(STATUS "lplb: no trainer (needs Open MPI after 4.1.0, 4.1.4 and 5.0.7 were run; this is "
                 "${CMAKE_MATCH_2})")
  return()
endif()
set(LPLB_HAVE_TRAIN ON)
# oneDNN is optional: matrix products of bf16.
include(CheckLibraryExists)
find_path(LPLB_DNNL_INCLUDE oneapi/dnnl/dnnl.h)
find_library(LPLB_DNNL dnnl)
if(LPLB_DNNL_INCLUDE AND LPLB_DNNL)
  check_library_exists(${LPLB_DNNL} dnnl_gemm_bf16bf16f32 "" LPLB_HAVE_DNNL)
endif()

file(GLOB LPLB_TRAIN_SOURCES CONFIGURE_DEPENDS src/train/*.c src/comm/mpi/*.c)
list(REMOVE_ITEM LPLB_TRAIN_SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/src/train/main.c)
foreach(kind f32 f64)
  add_library(lplb_train_${kind} STATIC ${LPLB_TRAIN_SOURCES})
  target_link_libraries(lplb_train_${kind} PUBLIC lplb_internal PkgConfig::OPENBLAS MPI::MPI_C
                        ZLIB::ZLIB ${CMAKE_DL_LIBS})
  if(kind STREQUAL f32 AND LPLB_HAVE_DNNL)
    target_include_directories(lplb_train_f32 PRIVATE ${LPLB_DNNL_INCLUDE})
    target_link_libraries(lplb_train_f32 PUBLIC ${LPLB_DNNL})
    target_compile_definitions(lplb_train_f32 PRIVATE LPLB_HAVE_DNNL)
  endif()
  if(kind STREQUAL f64)
    target_compile_definitions(lplb_train_${kind} PUBLIC LPLB_TRAIN_F64)
  endif()
  string(REPLACE "-f32" "" program lplb-train-${kind})
  add_executable(${program} src/train/main.c)
  target_link_libraries(${program} PRIVATE lplb_train_${kind})
  install(TARGETS ${program} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT train)
endforeach()
