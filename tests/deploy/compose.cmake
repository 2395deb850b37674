if(DISTILL_TORCH)
  find_package(Python3 COMPONENTS Interpreter QUIET)
  if(Python3_FOUND)
    add_test(NAME compose_test COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/compose_test.py
      --source ${CMAKE_SOURCE_DIR} --build ${CMAKE_BINARY_DIR})
    set_tests_properties(compose_test PROPERTIES LABELS "deploy;slow" TIMEOUT 1500 SKIP_RETURN_CODE 77)
  endif()
endif()
