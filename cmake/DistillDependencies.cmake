# Third-party libraries, all from Debian packages (scripts/setup.sh) except LibTorch, which is the pinned PyPI wheel.
#
# Linked statically wherever Debian ships an archive, with hidden symbols, so that a binary runs on a machine that has LibTorch and
# libc alone. prometheus-cpp has no archive: its core library is copied beside the binaries and found through $ORIGIN.

find_package(Threads REQUIRED)

function(distill_archive out name)
  find_library(DISTILL_ARCHIVE_${name} NAMES lib${name}.a REQUIRED)
  set(${out} ${DISTILL_ARCHIVE_${name}} PARENT_SCOPE)
endfunction()

# distill_static(NAME archive...): distill::NAME links these archives as one group.
function(distill_static name)
  set(files)
  foreach(archive ${ARGN})
    distill_archive(file ${archive})
    list(APPEND files ${file})
  endforeach()
  add_library(distill_dep_${name} INTERFACE)
  target_link_libraries(distill_dep_${name} INTERFACE -Wl,--start-group ${files} -Wl,--end-group Threads::Threads)
  add_library(distill::${name} ALIAS distill_dep_${name})
endfunction()

# --- Abseil, gRPC, protobuf -----------------------------------------------------------------------------------------------------
find_library(DISTILL_ABSL_STATUS NAMES libabsl_status.a REQUIRED)
get_filename_component(distill_absl_dir ${DISTILL_ABSL_STATUS} DIRECTORY)
file(GLOB distill_absl_archives ${distill_absl_dir}/libabsl_*.a)  # Debian's set of archives, not sources of ours
list(FILTER distill_absl_archives EXCLUDE REGEX "flags|_test|benchmark")
add_library(distill_dep_absl INTERFACE)
target_link_libraries(distill_dep_absl INTERFACE -Wl,--start-group ${distill_absl_archives} -Wl,--end-group Threads::Threads rt)
add_library(distill::absl ALIAS distill_dep_absl)

distill_static(zlib z)
distill_static(protobuf protobuf)
target_link_libraries(distill_dep_protobuf INTERFACE distill::zlib)
distill_static(grpc grpc++ grpc gpr upb address_sorting re2 cares ssl crypto z)
target_link_libraries(distill_dep_grpc INTERFACE distill::absl distill::protobuf dl)
distill_archive(distill_reflection grpc++_reflection)
add_library(distill_dep_grpc_reflection INTERFACE)
# The reflection plugin registers itself in a static initialiser that nothing refers to.
target_link_libraries(distill_dep_grpc_reflection INTERFACE -Wl,--whole-archive ${distill_reflection} -Wl,--no-whole-archive distill::grpc)
add_library(distill::grpc_reflection ALIAS distill_dep_grpc_reflection)
find_program(DISTILL_PROTOC protoc REQUIRED)
find_program(DISTILL_GRPC_PLUGIN grpc_cpp_plugin REQUIRED)

# --- Others ---------------------------------------------------------------------------------------------------------------------
distill_static(sqlite sqlite3)
target_link_libraries(distill_dep_sqlite INTERFACE dl m)
distill_static(yaml yaml-cpp)
distill_static(openssl ssl crypto)
target_link_libraries(distill_dep_openssl INTERFACE dl)
distill_static(jpeg jpeg)
distill_static(png png z)
distill_static(webp webp)

# spdlog and fmt, header-only: only common/log.cc includes them.
add_library(distill_dep_spdlog INTERFACE)
target_compile_definitions(distill_dep_spdlog INTERFACE SPDLOG_HEADER_ONLY SPDLOG_FMT_EXTERNAL FMT_HEADER_ONLY)
target_link_libraries(distill_dep_spdlog INTERFACE Threads::Threads)
add_library(distill::spdlog ALIAS distill_dep_spdlog)

find_library(DISTILL_PROMETHEUS_CORE NAMES prometheus-cpp-core REQUIRED)
file(REAL_PATH ${DISTILL_PROMETHEUS_CORE} distill_prometheus_real)
file(COPY ${distill_prometheus_real} DESTINATION ${CMAKE_BINARY_DIR}/bin)
get_filename_component(distill_prometheus_file ${distill_prometheus_real} NAME)
file(CREATE_LINK ${distill_prometheus_file} ${CMAKE_BINARY_DIR}/bin/libprometheus-cpp-core.so.1.0 SYMBOLIC)
add_library(distill_dep_prometheus INTERFACE)
target_link_libraries(distill_dep_prometheus INTERFACE ${DISTILL_PROMETHEUS_CORE})
list(APPEND CMAKE_BUILD_RPATH $ORIGIN $ORIGIN/../bin)  # installed programs: DistillInstall.cmake
add_library(distill::prometheus ALIAS distill_dep_prometheus)

if(DISTILL_TESTS)
  find_package(GTest REQUIRED)
  include(GoogleTest)
endif()
if(DISTILL_BENCH)
  find_package(benchmark REQUIRED)
endif()

# --- LibTorch -------------------------------------------------------------------------------------------------------------------
if(DISTILL_TORCH)
  if(DISTILL_TORCH_ROOT)
    set(distill_torch_root ${DISTILL_TORCH_ROOT})
  else()
    file(GLOB distill_torch_found ${CMAKE_SOURCE_DIR}/build/venv/lib/python3*/site-packages/torch)
    list(GET distill_torch_found 0 distill_torch_root)
  endif()
  if(NOT EXISTS ${distill_torch_root}/lib/libtorch_cpu.so)
    message(FATAL_ERROR "LibTorch not found (looked in '${distill_torch_root}'). Run scripts/setup.sh, or give -DDISTILL_TORCH_ROOT=FOLDER, or -DDISTILL_TORCH=OFF.")
  endif()
  # Debian's gloo headers (2022) would be picked up silently by c10d's ProcessGroupGloo.hpp; class layouts differ from the wheel's.
  if(EXISTS /usr/include/gloo/config.h)
    message(FATAL_ERROR "libgloo-dev is installed: its headers do not match the gloo inside LibTorch. Remove the package (apt-get remove libgloo-dev).")
  endif()
  message(STATUS "LibTorch: ${distill_torch_root}")
  add_library(distill_dep_torch INTERFACE)
  target_include_directories(distill_dep_torch SYSTEM INTERFACE
    ${distill_torch_root}/include ${distill_torch_root}/include/torch/csrc/api/include)
  # CPU programs link these alone; CUDA comes in at run time through the plugin (common/cuda).
  target_link_libraries(distill_dep_torch INTERFACE ${distill_torch_root}/lib/libtorch_cpu.so ${distill_torch_root}/lib/libc10.so)
  target_link_options(distill_dep_torch INTERFACE -Wl,-rpath-link,${distill_torch_root}/lib -Wl,--allow-shlib-undefined)
  target_compile_definitions(distill_dep_torch INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
  add_library(distill::torch ALIAS distill_dep_torch)

  # One precompiled header for all sources that include torch.
  file(WRITE ${CMAKE_BINARY_DIR}/torch_pch/torch_pch.cc "// Exists to carry the precompiled header.\n")
  add_library(distill_torch_pch STATIC ${CMAKE_BINARY_DIR}/torch_pch/torch_pch.cc)
  target_link_libraries(distill_torch_pch PRIVATE distill_flags distill::torch)
  target_compile_options(distill_torch_pch PRIVATE -fpch-preprocess)
  target_precompile_headers(distill_torch_pch PRIVATE <torch/torch.h>)
endif()

# --- CUDA -----------------------------------------------------------------------------------------------------------------------
set(DISTILL_WITH_CUDA OFF)
if(DISTILL_TORCH AND NOT DISTILL_CUDA STREQUAL "OFF")
  find_program(DISTILL_NVCC nvcc PATHS /usr/local/cuda/bin)
  if(DISTILL_NVCC)
    set(DISTILL_WITH_CUDA ON)
    set(CMAKE_CUDA_COMPILER ${DISTILL_NVCC})
    set(CMAKE_CUDA_ARCHITECTURES 75-real;80-real;90 CACHE STRING "GPU architectures to compile for")
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
  elseif(DISTILL_CUDA STREQUAL "ON")
    message(FATAL_ERROR "DISTILL_CUDA=ON, but nvcc was not found")
  endif()
endif()
message(STATUS "CUDA plugin: ${DISTILL_WITH_CUDA}")
