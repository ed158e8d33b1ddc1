/* Preloaded before libfaketime, whose clock_nanosleep() refuses monotonic deadlines, such as those
   of Python's time.sleep(), where monotonic clocks are not faked. Sleeps of the wall clock are not
   asked for by anything here. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *request,
                    struct timespec *remain) {
  int before = errno, failed = syscall(SYS_clock_nanosleep, clock, flags, request, remain);
  int error = failed ? errno : 0;
  errno = before;
  return error;
}
