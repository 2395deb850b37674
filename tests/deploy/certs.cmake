add_test(NAME make_certs_test COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/make_certs_test.sh)
set_tests_properties(make_certs_test PROPERTIES LABELS "unit;deploy" TIMEOUT 60)
