# liblplb_cuda, the GPU part: built where nvcc is. Without it everything else builds, and a line
# says what is missing. Its kernels are plain C++ apart from src/cuda/simt.cuh, so wherever there is
# a C++ compiler the tests run them on the CPU too (tests/cuda/emulator), GPU or not.
set(LPLB_CUDA AUTO CACHE STRING "Build liblplb_cuda: ON, OFF, or AUTO = where nvcc is")
set_property(CACHE LPLB_CUDA PROPERTY STRINGS AUTO ON OFF)
file(GLOB LPLB_CUDA_SOURCES CONFIGURE_DEPENDS src/cuda/*.c)

# Sets LPLB_CUDA_MISSING to what stands in the way, or to "".
function(lplb_find_nvcc)
  set(LPLB_CUDA_MISSING "" PARENT_SCOPE)
  if(NOT CUDAToolkit_NVCC_EXECUTABLE OR NOT TARGET CUDA::cudart_static)
    set(LPLB_CUDA_MISSING "nvcc with its runtime (put it into PATH or set CUDAToolkit_ROOT)"
        PARENT_SCOPE)
  elseif(CUDAToolkit_VERSION VERSION_LESS 12.0)
    set(LPLB_CUDA_MISSING "CUDA 12.0 or newer, not ${CUDAToolkit_VERSION}" PARENT_SCOPE)
  else() # the preprocessor is enough for nvcc to refuse a host compiler
    execute_process(COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} -std=c++17 -x cu -E /dev/null
                    RESULT_VARIABLE result OUTPUT_QUIET ERROR_QUIET)
    if(result)
      set(LPLB_CUDA_MISSING "a host compiler that nvcc ${CUDAToolkit_VERSION} takes" PARENT_SCOPE)
    endif()
  endif()
endfunction()

set(LPLB_BUILDS_CUDA OFF)
if(LPLB_CUDA STREQUAL "AUTO" AND LPLB_SANITIZE)
  # the device code would be the same once more
elseif(LPLB_CUDA)
  find_package(CUDAToolkit QUIET)
  lplb_find_nvcc()
  if(NOT LPLB_CUDA_MISSING)
    set(LPLB_BUILDS_CUDA ON)
  elseif(NOT LPLB_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "liblplb_cuda needs ${LPLB_CUDA_MISSING}")
  elseif(NOT LPLB_CUDA_MISSING STREQUAL "${LPLB_CUDA_SAID}") # once a build folder
    message(NOTICE "lplb: no liblplb_cuda, the GPU part: that needs ${LPLB_CUDA_MISSING}")
    set(LPLB_CUDA_SAID ${LPLB_CUDA_MISSING} CACHE INTERNAL "")
  endif()
endif()
if(NOT LPLB_BUILDS_CUDA)
  return()
endif()

# nvcc compiles for Blackwell from 12.8 on.
set(LPLB_CUDA_KNOWN 80 90)
if(NOT CUDAToolkit_VERSION VERSION_LESS 12.8)
  list(APPEND LPLB_CUDA_KNOWN 100)
endif()
set(LPLB_CUDA_ARCHITECTURES ${LPLB_CUDA_KNOWN} CACHE STRING "Compute capabilities to compile for")
set(LPLB_CUDA_FLAGS "" CACHE STRING "Further options of nvcc")
# The host side of a kernel must not need a C++ runtime.
set(LPLB_NVCC ${CUDAToolkit_NVCC_EXECUTABLE} -std=c++17 -O3 -lineinfo
    -Xcompiler -fPIC,-fno-exceptions,-fno-threadsafe-statics)
foreach(arch ${LPLB_CUDA_ARCHITECTURES})
  list(APPEND LPLB_NVCC -gencode arch=compute_${arch},code=sm_${arch})
  set(newest ${arch})
endforeach()
list(APPEND LPLB_NVCC -gencode arch=compute_${newest},code=compute_${newest} ${LPLB_CUDA_FLAGS}
     -I${CMAKE_SOURCE_DIR}/include -I${CMAKE_SOURCE_DIR}/src)

file(GLOB LPLB_CUDA_HEADERS CONFIGURE_DEPENDS src/cuda/*.cuh src/cuda/*.h)
file(GLOB LPLB_CUDA_KERNELS CONFIGURE_DEPENDS src/cuda/*.cu)
set(LPLB_CUDA_OBJECTS)
foreach(kernel ${LPLB_CUDA_KERNELS})
  get_filename_component(name ${kernel} NAME_WE)
  set(object ${CMAKE_BINARY_DIR}/lplb_cuda_${name}.o)
  add_custom_command(OUTPUT ${object} COMMAND ${LPLB_NVCC} -c ${kernel} -o ${object}
                     DEPENDS ${kernel} ${LPLB_CUDA_HEADERS} src/plan/exact_layout.h
                             include/lplb/cuda.h VERBATIM)
  list(APPEND LPLB_CUDA_OBJECTS ${object})
endforeach()
add_custom_target(lplb_cuda_kernels DEPENDS ${LPLB_CUDA_OBJECTS})

# Errors and memory are liblplb's, so that a program has one record of each; of its other internal
# functions the library has copies of its own, which it does not export. CUDA's runtime is linked
# in: it shares the device's context with any other copy of a process.
add_library(lplb_cuda SHARED ${LPLB_CUDA_SOURCES} ${LPLB_CUDA_OBJECTS})
add_dependencies(lplb_cuda lplb_cuda_kernels)
target_include_directories(lplb_cuda PRIVATE src)
target_link_libraries(lplb_cuda PUBLIC lplb PRIVATE lplb_internal CUDA::cudart_static)
target_link_options(lplb_cuda PRIVATE -Wl,-z,defs
                    -Wl,--version-script=${CMAKE_SOURCE_DIR}/cmake/lplb_cuda.map)
set_target_properties(lplb_cuda PROPERTIES VERSION ${PROJECT_VERSION}
                      SOVERSION ${PROJECT_VERSION_MAJOR} INSTALL_RPATH "$ORIGIN"
                      LINK_DEPENDS ${CMAKE_SOURCE_DIR}/cmake/lplb_cuda.map)

# All in one, for tests and benchmarks.
add_library(lplb_cuda_static STATIC ${LPLB_CUDA_SOURCES} ${LPLB_CUDA_OBJECTS})
add_dependencies(lplb_cuda_static lplb_cuda_kernels)
target_link_libraries(lplb_cuda_static PUBLIC lplb_internal CUDA::cudart_static)
