# wheel_test: what scripts/wheel.sh makes, installed as a user would, runs the main job.
if(DISTILL_TORCH)
  find_program(DISTILL_VENV_PYTHON NAMES python PATHS ${CMAKE_SOURCE_DIR}/build/venv/bin NO_DEFAULT_PATH)
  if(DISTILL_VENV_PYTHON)
    add_test(NAME wheel_test COMMAND ${DISTILL_VENV_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/wheel_test.py
      --source ${CMAKE_SOURCE_DIR} --build ${CMAKE_BINARY_DIR} --torch ${distill_torch_root})
    set_tests_properties(wheel_test PROPERTIES LABELS "deploy;slow" TIMEOUT 1500 SKIP_RETURN_CODE 77)
  endif()
endif()
