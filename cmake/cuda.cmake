# liblplb_cuda, the GPU part. Off unless asked for (-DLPLB_CUDA=ON): it is being brought up on the
# device. Its kernels are plain C++ apart from src/cuda/simt.cuh, so wherever there is a C++
# compiler the tests run them on the CPU too (tests/cuda/emulator), GPU or not.
option(LPLB_CUDA "Build liblplb_cuda (needs nvcc)" OFF)
set(LPLB_CUDA_ARCHITECTURES "80;90;100" CACHE STRING "Compute capabilities to compile for")
file(GLOB LPLB_CUDA_SOURCES CONFIGURE_DEPENDS src/cuda/*.c)

if(LPLB_CUDA)
  find_package(CUDAToolkit REQUIRED)
  set(gencode)
  foreach(arch ${LPLB_CUDA_ARCHITECTURES})
    list(APPEND gencode -gencode arch=compute_${arch},code=sm_${arch})
    set(newest ${arch})
  endforeach()
  list(APPEND gencode -gencode arch=compute_${newest},code=compute_${newest})
  file(GLOB LPLB_CUDA_KERNELS CONFIGURE_DEPENDS src/cuda/*.cu src/cuda/*.cuh src/cuda/*.h)
  add_custom_command(
    OUTPUT ${CMAKE_BINARY_DIR}/lplb_cuda_step.o
    COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} -std=c++17 -O3 -lineinfo -Xcompiler -fPIC ${gencode}
            -I${CMAKE_SOURCE_DIR}/include -I${CMAKE_SOURCE_DIR}/src -c
            ${CMAKE_SOURCE_DIR}/src/cuda/step.cu -o ${CMAKE_BINARY_DIR}/lplb_cuda_step.o
    DEPENDS ${LPLB_CUDA_KERNELS})
  add_library(lplb_cuda SHARED ${LPLB_CUDA_SOURCES} ${CMAKE_BINARY_DIR}/lplb_cuda_step.o)
  target_include_directories(lplb_cuda PUBLIC include PRIVATE src)
  target_link_libraries(lplb_cuda PRIVATE lplb_internal CUDA::cudart)
endif()
