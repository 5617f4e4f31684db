# The table of instruction sets: name | architecture | compiler flags.
#
# Each file csrc/cpu/<family>/<arch>_<isa>.cpp is compiled once, alone, with the flags of its row;
# everything else gets the baseline of the architecture, so that no instruction leaks to a CPU
# that lacks it. The run-time probe of each row is in csrc/cpu/arch.cpp.
set(FASTINFER_ISA_TABLE
  "avx2|x86|-mavx2 -mfma -mf16c"
  "avxvnni|x86|-mavx2 -mfma -mf16c -mavxvnni"
  "avx512|x86|-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512"
  "avx512vnni|x86|-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512"
  "avx512vbmi2|x86|-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512vbmi -mavx512vbmi2 -mprefer-vector-width=512"
  "avx512bf16|x86|-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mprefer-vector-width=512"
  "amx|x86|-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16 -mprefer-vector-width=512"
  "neon|arm|-march=armv8-a"
  "neondot|arm|-march=armv8.2-a+dotprod"
  "neoni8mm|arm|-march=armv8.6-a+i8mm"
)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(FASTINFER_ARCH x86)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(FASTINFER_ARCH arm)
else()
  set(FASTINFER_ARCH none)
endif()

# Sets `out` to the compiler flags of `isa`.
function(fastinfer_isa_flags isa out)
  foreach(row IN LISTS FASTINFER_ISA_TABLE)
    if(row MATCHES "^${isa}\\|[^|]*\\|(.*)$")
      separate_arguments(flags UNIX_COMMAND "${CMAKE_MATCH_1}")
      set(${out} ${flags} PARENT_SCOPE)
    endif()
  endforeach()
endfunction()

# Adds to `target` the ISA files of one kernel family that this architecture can compile.
function(fastinfer_add_isa_sources target family)
  # A new file comes with a new row: look for files again when the rows change.
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
    "${PROJECT_SOURCE_DIR}/csrc/cpu/${family}/kernels.inc")
  foreach(row IN LISTS FASTINFER_ISA_TABLE)
    string(REPLACE "|" ";" fields "${row}")
    list(GET fields 0 isa)
    list(GET fields 1 arch)
    fastinfer_isa_flags(${isa} flags)
    set(source "${PROJECT_SOURCE_DIR}/csrc/cpu/${family}/${arch}_${isa}.cpp")
    if(arch STREQUAL FASTINFER_ARCH AND EXISTS "${source}")
      target_sources(${target} PRIVATE "${source}")
      set_property(SOURCE "${source}" PROPERTY COMPILE_OPTIONS "${flags}")
    endif()
  endforeach()
endfunction()
