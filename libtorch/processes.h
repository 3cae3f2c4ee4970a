// Several processes that train one model: how they meet, share numbers, and learn that one of them is gone.
#pragma once

#include <heed/attention.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "libtorch/children.h"

namespace heed::nn {

// Where the processes meet.
struct Rendezvous {
  Place place;          // with a `board`, all of them are on this machine
  std::string host;     // without one: the address of rank 0, which listens there
  int port = 0;         // beside `host`
  double seconds = 60;  // how long to wait for all to come; later, ten times as long for one that no longer answers
};

// Host and port of "tcp://host:port"; an IPv6 address stands in brackets. Throws heed::Error for another form.
void parse_rendezvous(const std::string& address, Rendezvous& result);

// Another process is gone, or ends for a reason of its own, which what() tells.
struct ProcessLost : public Error {
  using Error::Error;
};

// This process among those it trains with: LibTorch's c10d over Gloo. All members but rank(), world() and last_words()
// are called by every rank, in the same order; none waits for ever. When one process is gone, the others get a
// ProcessLost within seconds of their next call.
//
// Between machines nothing is encrypted and nobody is asked who they are: for networks whose users are trusted.
class Processes {
 public:
  // Waits for the others. `children` are those that rank 0 has started, if it has. Which network device the numbers
  // take is decided by the address that reaches rank 0, or by the variable GLOO_SOCKET_IFNAME. SIGPIPE, where the
  // program left it to end the process, is ignored from then on. Throws heed::Error that says who did not come, what is
  // wrong with the address, or in what the processes differ.
  explicit Processes(const Rendezvous& rendezvous, Children* children = nullptr);
  ~Processes();
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;

  int rank() const { return rank_; }
  int world() const { return world_; }

  // Throws heed::Error, naming the first key whose value differs, unless all ranks give the same flat object.
  void agree(const nlohmann::json& facts);

  // The text of rank 0, for all; what the others give is not looked at. May take rank 0 as long as it needs.
  std::string tell(const std::string& text);

  // Adds up over all ranks, in place; the sums have the same bits on each. Contiguous float or double tensors.
  void sum(torch::Tensor tensor);
  void sum(std::span<double> numbers);

  // Copies rank 0's tensor into that of the others.
  void broadcast(torch::Tensor tensor);

  // Tells the others why this process ends, before it does. Throws nothing; of several calls the first counts.
  void last_words(const std::string& reason) noexcept;

 private:
  struct Group;
  template <class Start>
  void run(const Start& start);
  void await(const std::string& key);
  [[noreturn]] void lost(const std::string& detail);

  int rank_, world_;
  Children* children_;
  std::unique_ptr<Group> group_;
  int64_t calls_ = 0;  // of agree() and tell(), for names that are used once
};

}  // namespace heed::nn
