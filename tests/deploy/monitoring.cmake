# prometheus_test, grafana_test: the files. grafana_live_test: dashboards against a real Prometheus that scraped a real job.
# backup_test, rolling_restart_test, rotation_test: procedures of docs/operations.md, played.
find_program(DISTILL_VENV_PYTHON NAMES python PATHS ${CMAKE_SOURCE_DIR}/build/venv/bin NO_DEFAULT_PATH)
if(DISTILL_VENV_PYTHON)
  foreach(name prometheus grafana)
    add_test(NAME ${name}_test COMMAND ${DISTILL_VENV_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/${name}_test.py)
    set_tests_properties(${name}_test PROPERTIES LABELS "deploy" TIMEOUT 300 SKIP_RETURN_CODE 77)
  endforeach()
  if(DISTILL_TORCH)
    add_test(NAME grafana_live_test
      COMMAND ${DISTILL_VENV_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/grafana_test.py --live ${CMAKE_RUNTIME_OUTPUT_DIRECTORY})
    foreach(procedure backup rolling_restart rotation)
      add_test(NAME ${procedure}_test
        COMMAND ${DISTILL_VENV_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/operations_test.py ${procedure} ${CMAKE_RUNTIME_OUTPUT_DIRECTORY})
    endforeach()
    set_tests_properties(grafana_live_test backup_test rolling_restart_test rotation_test PROPERTIES LABELS "deploy;slow" TIMEOUT 600 SKIP_RETURN_CODE 77)
  endif()
endif()
