# The script of a first GPU run, as far as it can be tried without one: its plan, and its job on CPUs.
add_test(NAME gpu_check_test COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/gpu_check_test.sh ${CMAKE_BINARY_DIR}/bin)
set_tests_properties(gpu_check_test PROPERTIES LABELS "unit" TIMEOUT 300)
