// What is live in this process: LibTorch, its threads, the BLAS it multiplies with, the allocator.
#pragma once

#include <string>

namespace heed::nn {

// Found by asking the process, not the build: which library a name resolves to is decided when a program starts.
struct Runtime {
  std::string torch_version;   // "1.13.1"
  std::string torch_parallel;  // "OpenMP", "native" or "TBB": whose threads LibTorch's loops use
  int threads = 0;             // LibTorch's threads for one operator
  std::string blas;            // "OpenBLAS 0.3.21, openmp, Haswell", "MKL", or the library's file name; "unknown" if
                               // there is none to be found. "oneDNN 2.6.3 before " it: see blas.cc
  std::string blas_path;       // file that provides sgemm_, symbolic links resolved; empty if unknown
  int blas_threads = 0;        // what that BLAS says it uses; 0: it does not say
  std::string allocator;       // "mimalloc 2.0.9", "jemalloc", "tcmalloc", "glibc", or the library's file name
  std::string allocator_path;  // file that provides malloc, symbolic links resolved

  // Whether BLAS and LibTorch each have a thread pool of their own, which makes them take the cores from each other.
  bool two_pools = false;
};

Runtime runtime();

// Lets LibTorch, and a BLAS that shares its threads, use n threads. Call it once when a program starts: LibTorch's own
// first guess is 1 on some virtual machines that have more. n = 0: HEED_THREADS or else OMP_NUM_THREADS if set, else
// the cores this process may use. Throws heed::Error for n < 0.
void use_threads(int n = 0);

// Starts the program again, in the same process, with what libgomp and mimalloc read only as they are loaded; call it
// once, first thing when LibTorch is going to work, with main's argv. What the environment already says stays. Returns
// if there is nothing to change or no way to.
// - OMP_WAIT_POLICY=passive: by default libgomp's threads spin while they wait. On two cores of which others want a
//   part, spinning made a GRU's training several times slower.
// - MIMALLOC_ALLOW_DECOMMIT=0 and MIMALLOC_RESERVE_OS_MEMORY, half of the machine's memory: mimalloc 2.0 returns
// tensors
//   of 16 MB and more to the system at once, and a training step takes them anew, zeroed page by page: 40,000 faults
//   and a seventh of its time. Reserved memory is address space; it takes room when it is written to.
void prepare_process(char** argv);

}  // namespace heed::nn
