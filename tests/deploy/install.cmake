# installed_tree_test: the tree that `cmake --install` makes, and the images are made of, is complete.
find_package(Python3 COMPONENTS Interpreter QUIET)
if(Python3_FOUND)
  add_test(NAME installed_tree_test COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/installed_tree_test.py
    ${CMAKE_BINARY_DIR} ${CMAKE_BINARY_DIR}/installed-tree)
  set_tests_properties(installed_tree_test PROPERTIES LABELS "deploy" TIMEOUT 300)
endif()
