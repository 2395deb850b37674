# Targets of this project. A room is one or a few libraries that link only what they may see; the include path of every target is
# the repository root, so that headers are named by room ("common/status.h").
#
# The include firewall: a target that links distill::torch (publicly or privately) must not link distill::protobuf, and the other
# way round. distill_check_firewall() makes CMake refuse such a target.

add_library(distill_flags INTERFACE)
target_include_directories(distill_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(distill_flags INTERFACE -Wall -Wextra -Wno-sign-compare -Wno-missing-field-initializers
  $<$<BOOL:${DISTILL_WERROR}>:-Werror>)
if(DISTILL_SANITIZE)
  target_compile_options(distill_flags INTERFACE -fsanitize=${DISTILL_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(distill_flags INTERFACE -fsanitize=${DISTILL_SANITIZE})
endif()

# distill_library(NAME SOURCES a.cc b.cc LINK x PRIVATE_LINK y)
function(distill_library name)
  cmake_parse_arguments(A "" "" "SOURCES;LINK;PRIVATE_LINK" ${ARGN})
  add_library(${name} STATIC ${A_SOURCES})
  target_link_libraries(${name} PUBLIC distill_flags ${A_LINK} PRIVATE ${A_PRIVATE_LINK})
  distill_check_firewall(${name} ${A_LINK} ${A_PRIVATE_LINK})
endfunction()

# Checks the direct links only: torch and protobuf are always linked PRIVATE or through libraries whose headers name neither.
function(distill_check_firewall name)
  set(sees_torch FALSE)
  set(sees_protobuf FALSE)
  foreach(link ${ARGN})
    if(link MATCHES "^distill::torch" OR link STREQUAL "distill_torch_pch")
      set(sees_torch TRUE)
    elseif(link MATCHES "^distill::(protobuf|grpc)" OR link MATCHES "^distill_(inference_)?proto$")
      set(sees_protobuf TRUE)
    endif()
  endforeach()
  if(sees_torch AND sees_protobuf)
    message(FATAL_ERROR "${name} links both torch and protobuf/gRPC: their headers clash (the wheel carries protobuf 3.13). Split it.")
  endif()
endfunction()

# Libraries whose sources include torch. They share one precompiled header.
function(distill_torch_library name)
  cmake_parse_arguments(A "" "" "SOURCES;LINK;PRIVATE_LINK" ${ARGN})
  distill_library(${name} SOURCES ${A_SOURCES} LINK ${A_LINK} PRIVATE_LINK ${A_PRIVATE_LINK} distill::torch)
  distill_use_torch_pch(${name})
endfunction()

function(distill_use_torch_pch name)
  # -fPIC: the header is precompiled for libraries; executables would get -fPIE and refuse it.
  target_compile_options(${name} PRIVATE -fpch-preprocess -Winvalid-pch -fPIC)
  target_precompile_headers(${name} REUSE_FROM distill_torch_pch)
endfunction()

function(distill_binary name)
  cmake_parse_arguments(A "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE distill_flags ${A_LINK})
  target_link_options(${name} PRIVATE -Wl,--exclude-libs,ALL -Wl,--gc-sections)
endfunction()

# Programs that load the CUDA plugin at run time: whoever builds them gets it too, where there is nvcc.
function(distill_loads_cuda_plugin)
  if(DISTILL_WITH_CUDA)
    foreach(name ${ARGN})
      add_dependencies(${name} distill_cuda)
    endforeach()
  endif()
endfunction()

# distill_test(NAME SOURCES a_test.cc LINK lib [TORCH] [LABELS unit] [TIMEOUT 60] [ENVIRONMENT A=b])
# One program per room or subject; the tests inside are found by ctest one by one.
function(distill_test name)
  cmake_parse_arguments(A "TORCH" "TIMEOUT" "SOURCES;LINK;LABELS;ENVIRONMENT" ${ARGN})
  if(NOT A_LABELS)
    set(A_LABELS unit)
  endif()
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
  endif()
  add_executable(${name} ${A_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_link_libraries(${name} PRIVATE distill_flags ${A_LINK} GTest::gmock GTest::gtest_main)
  if(A_TORCH)
    target_link_libraries(${name} PRIVATE distill::torch)
    distill_use_torch_pch(${name})
  endif()
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES LABELS "${A_LABELS}" TIMEOUT ${A_TIMEOUT} ENVIRONMENT "${A_ENVIRONMENT}")
endfunction()
