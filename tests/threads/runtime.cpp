// The part of GCC's OpenMP runtime that kernel.cpp calls, out of threads and barriers that ThreadSanitizer knows.
//
// GCC's own library waits by system calls that the sanitizer does not see, and would be reported for every barrier.
// Nothing here orders two threads but what OpenMP says: the start and end of a parallel region, and its barriers. A loop
// with a dynamic schedule is dealt out in turn, which the standard allows: every thread works, however busy the machine.
#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <thread>
#include <vector>

namespace {

struct Team {
  explicit Team(unsigned size) : size(size) { pthread_barrier_init(&barrier, nullptr, size); }
  ~Team() { pthread_barrier_destroy(&barrier); }
  unsigned size;
  pthread_barrier_t barrier;
};

struct Share {  // of a dynamic loop: what this thread does next
  long next, end, chunk, stride;
};

thread_local Team* team = nullptr;
thread_local unsigned number = 0;
thread_local Share share;
std::mutex atomic;

}  // namespace

extern "C" {

int omp_get_thread_num() { return static_cast<int>(number); }
int omp_get_num_threads() { return team ? static_cast<int>(team->size) : 1; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned size, unsigned) {
  Team own(std::max(size, 1u));
  const auto work = [&](unsigned i) {
    team = &own, number = i;
    body(data);
    team = nullptr, number = 0;
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < own.size; i++) others.emplace_back(work, i);
  work(0);
  for (std::thread& other : others) other.join();
}

void GOMP_barrier() {
  if (team) pthread_barrier_wait(&team->barrier);
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) {
  if (share.next >= share.end) return false;
  *first = share.next, *last = std::min(share.next + share.chunk, share.end);
  share.next += share.stride;
  return true;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long* first, long* last) {
  if (step != 1) __builtin_trap();  // the kernel has no other loop
  share = {start + chunk * omp_get_thread_num(), end, chunk, chunk * omp_get_num_threads()};
  return GOMP_loop_nonmonotonic_dynamic_next(first, last);
}

void GOMP_loop_end() { GOMP_barrier(); }
void GOMP_loop_end_nowait() {}
void GOMP_atomic_start() { atomic.lock(); }
void GOMP_atomic_end() { atomic.unlock(); }
}
