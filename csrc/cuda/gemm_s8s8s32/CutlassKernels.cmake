# The CUTLASS kernels of gemm_s8s8s32 (cutlass.h), for a build with CUDA. CUTLASS is headers, from
# the PyPI package nvidia-cutlass of the Python that builds. A kernel takes a minute and 4 GB to
# compile, and they are compiled for sm_90a alone.
set(FASTINFER_CUTLASS "AUTO" CACHE STRING
    "Build the CUTLASS kernels: AUTO (if nvidia-cutlass is installed), ON or OFF")
set_property(CACHE FASTINFER_CUTLASS PROPERTY STRINGS AUTO ON OFF)
if(NOT FASTINFER_CUTLASS MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FASTINFER_CUTLASS is \"${FASTINFER_CUTLASS}\", want AUTO, ON or OFF")
endif()

if(NOT FASTINFER_CUTLASS STREQUAL "OFF" AND NOT FASTINFER_CUTLASS_INCLUDE)
  find_package(Python REQUIRED COMPONENTS Interpreter)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "from importlib.util import find_spec as f; print(f('cutlass_library').origin, end='')"
    OUTPUT_VARIABLE origin ERROR_QUIET)
  cmake_path(GET origin PARENT_PATH package)
  find_path(FASTINFER_CUTLASS_INCLUDE cutlass/cutlass.h PATHS "${package}/source/include"
            NO_DEFAULT_PATH DOC "The include directory of CUTLASS 4.2")
endif()
if(FASTINFER_CUTLASS STREQUAL "ON" AND NOT FASTINFER_CUTLASS_INCLUDE)
  message(FATAL_ERROR
    "FASTINFER_CUTLASS is ON and ${Python_EXECUTABLE} has no CUTLASS: install its headers "
    "(pip install --no-deps nvidia-cutlass==4.2.0.0), or build with FASTINFER_CUTLASS=OFF")
endif()

# Adds cutlass.h and cutlass_sp24.h to `target`, with the kernels if there is a CUTLASS.
function(fastinfer_add_cutlass target)
  set(here "${PROJECT_SOURCE_DIR}/csrc/cuda/gemm_s8s8s32")
  if(FASTINFER_CUTLASS STREQUAL "OFF" OR NOT FASTINFER_CUTLASS_INCLUDE)
    message(STATUS "fastinfer: built without CUTLASS")
    target_sources(${target} PRIVATE "${here}/cutlass_off.cpp")
    return()
  endif()
  add_library(fastinfer_cutlass OBJECT
    "${here}/cutlass_sm90_128x128_16bit.cu"
    "${here}/cutlass_sm90_128x128_32bit.cu"
    "${here}/cutlass_sm90_128x128_stream_k_16bit.cu"
    "${here}/cutlass_sm90_128x128_stream_k_32bit.cu"
    "${here}/cutlass_sm90_128x256_16bit.cu"
    "${here}/cutlass_sm90_128x256_32bit.cu"
    "${here}/cutlass_sm90_sp24_16bit.cu"
    "${here}/cutlass_sm90_sp24_32bit.cu")
  set_target_properties(fastinfer_cutlass PROPERTIES
    CUDA_ARCHITECTURES OFF CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden
    POSITION_INDEPENDENT_CODE ON)
  # Warnings of the headers, which nvcc gives in spite of SYSTEM where their templates meet ours,
  # are not ours to mend: none are asked for.
  target_compile_options(fastinfer_cutlass PRIVATE
    -gencode arch=compute_90a,code=sm_90a -fmad=false --expt-relaxed-constexpr
    --compress-mode=size)
  target_include_directories(fastinfer_cutlass PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_include_directories(fastinfer_cutlass SYSTEM PRIVATE "${FASTINFER_CUTLASS_INCLUDE}")
  target_sources(${target} PRIVATE "${here}/cutlass.cpp" $<TARGET_OBJECTS:fastinfer_cutlass>)
  target_compile_definitions(${target} PUBLIC FASTINFER_HAS_CUTLASS)
endfunction()
