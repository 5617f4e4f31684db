// Marks what the shared library of kernels offers to the operators, the Python module and tests.
#pragma once

#define FASTINFER_API __attribute__((visibility("default")))
