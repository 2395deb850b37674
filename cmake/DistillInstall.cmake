# `cmake --install BUILD --prefix FOLDER` makes a tree that runs wherever it is put, on a machine with libc and libstdc++ alone:
#   bin/   the programs            lib/  the shared libraries that they load, LibTorch's included
# Components: `runtime` is complete for CPUs, `cuda` adds the plugin and what it loads (when it was built). `wheel`, which only who
# asks for it gets, is the programs and the plugin alone: scripts/wheel.sh lets them find LibTorch in the package torch.
set(distill_programs distill-coordinator distillctl distill-data)
if(DISTILL_TORCH)
  list(APPEND distill_programs distill-teacher distill-student)
endif()
add_custom_target(programs DEPENDS ${distill_programs})  # all of ours that is installed: with the plugin, below
set_target_properties(${distill_programs} PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
install(TARGETS ${distill_programs} RUNTIME DESTINATION bin COMPONENT runtime)
install(TARGETS ${distill_programs} RUNTIME DESTINATION bin COMPONENT wheel EXCLUDE_FROM_ALL)
install(FILES ${distill_prometheus_real} DESTINATION lib RENAME libprometheus-cpp-core.so.1.0 COMPONENT runtime)

# Follows what the programs need (as ldd does) and installs what does not belong to the system. LibTorch's own libraries find one
# another there, because they search the folder they lie in.
function(distill_install_needed component kind)  # kind: EXECUTABLES or LIBRARIES
  list(JOIN ARGN "\" \"" files)
  install(CODE "
    file(GET_RUNTIME_DEPENDENCIES ${kind} \"${files}\" RESOLVED_DEPENDENCIES_VAR needed UNRESOLVED_DEPENDENCIES_VAR missing
      PRE_EXCLUDE_REGEXES \"^libprometheus-cpp\" \"^libcuda[.]so\" \"^ld-linux\"
      POST_EXCLUDE_REGEXES \"^/lib\" \"^/usr/lib\")
    if(missing)
      message(FATAL_ERROR \"not found, but needed by the installed programs: \${missing}\")
    endif()
    foreach(file IN LISTS needed)
      file(INSTALL DESTINATION \"\${CMAKE_INSTALL_PREFIX}/lib\" TYPE SHARED_LIBRARY FILES \"\${file}\" FOLLOW_SYMLINK_CHAIN)
    endforeach()" COMPONENT ${component})
endfunction()

if(DISTILL_TORCH)
  distill_install_needed(runtime EXECUTABLES $<TARGET_FILE:distill-teacher> $<TARGET_FILE:distill-student>)
endif()
if(DISTILL_WITH_CUDA)
  add_dependencies(programs distill_cuda)
  set_target_properties(distill_cuda PROPERTIES INSTALL_RPATH "$ORIGIN")
  install(TARGETS distill_cuda LIBRARY DESTINATION lib COMPONENT cuda)
  install(TARGETS distill_cuda LIBRARY DESTINATION lib COMPONENT wheel EXCLUDE_FROM_ALL)
  # cuDNN loads its parts when a convolution first needs them, and compiles some kernels with NVRTC; LibTorch reaches NVRTC, which
  # joins the operations of TorchScript archives to kernels, through a library of its own. Left out: libtorch_cuda_linalg.so with
  # cuSOLVER (200 MB), which only torch.linalg loads.
  file(GLOB distill_cuda_loaded ${distill_torch_root}/../nvidia/cudnn/lib/libcudnn_*.so.9 ${distill_torch_root}/lib/libcaffe2_nvrtc.so
    ${distill_torch_root}/../nvidia/cu*/lib/libnvrtc.so.* ${distill_torch_root}/../nvidia/cu*/lib/libnvrtc-builtins.so.*)
  install(FILES ${distill_cuda_loaded} DESTINATION lib COMPONENT cuda)
  distill_install_needed(cuda LIBRARIES $<TARGET_FILE:distill_cuda> ${distill_cuda_loaded})
endif()
