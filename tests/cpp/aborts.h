// Misuse that must not go on: run in a child process.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

namespace fastinfer::test {

// Whether `body` ends the process, its message aside.
template <class Body>
bool aborts(Body&& body) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(1);
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status);
}

}  // namespace fastinfer::test
