# What of the three libraries this machine can build, and the record of it that `winograd.library` reads.
include(CheckLanguage)

# Leaves out a part, or fails if it was asked for. The first reason is the one that matters, so it is the one recorded.
macro(leave_out part reason)
  if("${WINOGRAD_${part}}" STREQUAL "ON")
    message(FATAL_ERROR "WINOGRAD_${part}=ON, but ${reason}.")
  elseif("${WINOGRAD_${part}}" STREQUAL "OFF")
    message(STATUS "winograd: ${reason}")
  else()
    message(WARNING "winograd is built WITHOUT its compiled code for ${part}: ${reason}. Plain torch will do the work, slowly.")
  endif()
  set_property(GLOBAL PROPERTY WINOGRAD_WITHOUT_${part} "${reason}")
endmacro()

# Enables C++, if there is a compiler and it is wanted.
macro(find_cxx)
  if(WINOGRAD_CPU STREQUAL "OFF")
    leave_out(CPU "it was built with WINOGRAD_CPU=OFF")
  else()
    check_language(CXX)
    if(CMAKE_CXX_COMPILER)
      enable_language(CXX)
    else()
      leave_out(CPU "it was built without a C++ compiler")
    endif()
  endif()
endmacro()

# Enables CUDA, likewise.
macro(find_cuda)
  if(WINOGRAD_CUDA STREQUAL "OFF")
    leave_out(CUDA "it was built with WINOGRAD_CUDA=OFF")
  else()
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      set(CMAKE_CUDA_ARCHITECTURES ${WINOGRAD_CUDA_ARCHITECTURES})
      enable_language(CUDA)
      set_property(GLOBAL PROPERTY WINOGRAD_CUDA_BUILT "${WINOGRAD_CUDA_ARCHITECTURES}")
    else()
      leave_out(CUDA "it was built without nvcc")
    endif()
  endif()
endmacro()

# Defines winograd_torch_headers, if torch can be found.
function(find_torch)
  if(WINOGRAD_TORCH STREQUAL "OFF")
    set_property(GLOBAL PROPERTY WINOGRAD_WITHOUT_CPU "it was built with WINOGRAD_TORCH=OFF")
    return()
  endif()
  set(folder "${WINOGRAD_TORCH}")
  if(WINOGRAD_TORCH STREQUAL "AUTO")
    find_program(PYTHON_EXECUTABLE NAMES python3 python REQUIRED)  # scikit-build-core says which
    execute_process(COMMAND ${PYTHON_EXECUTABLE} ${PROJECT_SOURCE_DIR}/cmake/find_torch.py
                    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  endif()
  if(NOT EXISTS "${folder}/include/torch/csrc/stable/library.h")
    leave_out(CPU "no torch was found when it was built (install torch first, or pass WINOGRAD_TORCH=its folder)")
    return()
  endif()
  message(STATUS "winograd: torch is taken from ${folder}")
  # No search path is recorded: whoever loads the operators has loaded torch before.
  add_library(torch_stable SHARED IMPORTED GLOBAL)
  set_target_properties(torch_stable PROPERTIES
    IMPORTED_LOCATION ${folder}/lib/libtorch_cpu${CMAKE_SHARED_LIBRARY_SUFFIX}
    INTERFACE_INCLUDE_DIRECTORIES ${folder}/include
    INTERFACE_COMPILE_DEFINITIONS TORCH_TARGET_VERSION=0x020a000000000000)  # 2.10, the first with parallel_for
endfunction()

# built.json: what is in this installation, and why the rest is not.
function(write_build_record)
  foreach(name WITHOUT_CPU WITHOUT_CUDA CUDA_BUILT)
    get_property(${name} GLOBAL PROPERTY WINOGRAD_${name})
  endforeach()
  if(NOT CMAKE_CXX_COMPILER)
    set(WITHOUT_CUDA "${WITHOUT_CPU}")
  endif()
  string(REPLACE "-real" "" CUDA_BUILT "${CUDA_BUILT}")
  string(REPLACE ";" " " CUDA_BUILT "${CUDA_BUILT}")
  configure_file(${PROJECT_SOURCE_DIR}/cmake/built.json.in ${CMAKE_CURRENT_BINARY_DIR}/built.json @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/built.json DESTINATION winograd)
endfunction()
