# check_deploy_test: overlays build and validate. kubernetes_test: they agree with the programs. podman_play_test: they run.
set(distill_venv_python ${CMAKE_SOURCE_DIR}/build/venv/bin/python)
if(EXISTS ${distill_venv_python})
  add_test(NAME check_deploy_test COMMAND ${CMAKE_SOURCE_DIR}/scripts/check_deploy.sh)
  set_tests_properties(check_deploy_test PROPERTIES LABELS "deploy" TIMEOUT 180)
  if(DISTILL_TORCH)  # these start all programs
    add_test(NAME kubernetes_test
      COMMAND ${distill_venv_python} ${CMAKE_CURRENT_SOURCE_DIR}/kubernetes_test.py ${CMAKE_RUNTIME_OUTPUT_DIRECTORY})
    set_tests_properties(kubernetes_test PROPERTIES LABELS "deploy" TIMEOUT 300)
    # Skips itself, with the reason, where podman cannot play: exit code 77.
    add_test(NAME podman_play_test
      COMMAND ${distill_venv_python} ${CMAKE_CURRENT_SOURCE_DIR}/podman_play_test.py ${CMAKE_BINARY_DIR})
    set_tests_properties(podman_play_test PROPERTIES LABELS "deploy;slow" TIMEOUT 1200 SKIP_RETURN_CODE 77)
    # Both build images, with the same base archive and log in build/: not at the same time.
    foreach(test podman_play_test compose_test)
      if(TEST ${test})
        set_property(TEST ${test} APPEND PROPERTY RESOURCE_LOCK container_images)
      endif()
    endforeach()
  endif()
else()
  message(STATUS "build/venv is missing (scripts/setup.sh): no tests of deploy/kubernetes")
endif()
