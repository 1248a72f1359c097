# How everything here is compiled, and how a library is added.
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH $ORIGIN)  # the libraries lie side by side
if(WINOGRAD_SANITIZE)
  set(CMAKE_BUILD_TYPE None)  # optimising would take three times as long to compile
elseif(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)  # -O3
endif()

# No -ffast-math: NaN and infinity stay what they are. No -march=native: what is built here runs elsewhere.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fno-math-errno> $<$<COMPILE_LANGUAGE:CXX>:-Wall> $<$<COMPILE_LANGUAGE:CXX>:-Wextra>)
if(WINOGRAD_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
  add_link_options(-fsanitize=address,undefined)
elseif(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  add_link_options(LINKER:-z,defs)  # a missing symbol is found here, not by the one who loads the library
endif()

# A shared library that goes into the Python package.
function(add_winograd_library name)
  add_library(${name} SHARED ${ARGN})
  set_target_properties(${name} PROPERTIES SUFFIX .so)  # one name for winograd.library to look for
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR}/csrc)
  install(TARGETS ${name} LIBRARY DESTINATION winograd)
endfunction()
