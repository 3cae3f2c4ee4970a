// Meeting at a store, the group on top of it, and the roll call when one is gone.
#include "libtorch/processes.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <torch/version.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

// Debian's LibTorch has Gloo, and its headers want to be told so; CMake files of newer ones define this themselves.
#ifndef USE_C10D_GLOO
#define USE_C10D_GLOO
#endif
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace heed::nn {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double kRollCall = 3;  // seconds that the others have to say that they live, when one is gone
constexpr double kFarewell = 3;  // seconds that rank 0, which holds the store, stays for the others to read it

Clock::time_point in(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(seconds));
}

// Gloo writes to sockets whose other end may have died. The write then fails, and lost() says who is gone; the signal
// that comes beside it would end this process without a word. A program's own handler stays.
void survive_broken_pipes() {
  struct sigaction action {};
  ::sigaction(SIGPIPE, nullptr, &action);
  if ((action.sa_flags & SA_SIGINFO) != 0 || action.sa_handler != SIG_DFL) return;
  action.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &action, nullptr);
}

void nap() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(std::min(seconds, 1e9) * 1000));
}

// LibTorch puts a backtrace behind what happened.
std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

std::string seconds_text(double seconds) {
  std::ostringstream text;
  text << seconds << " s";
  return text.str();
}

std::string join(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == ranks.size() ? " and " : ", ") + std::to_string(ranks[i]);
  }
  return text;
}

// ---- Addresses ----

struct Socket {
  explicit Socket(int descriptor) : descriptor(descriptor) {}
  ~Socket() {
    if (descriptor >= 0) ::close(descriptor);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int descriptor;
};

struct Addresses {
  explicit Addresses(const std::string& host, int port) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &first);
    if (error != 0) throw Error("there is no address for " + host + " (" + ::gai_strerror(error) + ")");
  }
  ~Addresses() { ::freeaddrinfo(first); }
  Addresses(const Addresses&) = delete;
  Addresses& operator=(const Addresses&) = delete;
  addrinfo* first = nullptr;
};

std::string numeric(const sockaddr* address, socklen_t size) {
  char host[NI_MAXHOST] = "";
  ::getnameinfo(address, size, host, sizeof host, nullptr, 0, NI_NUMERICHOST);
  return host;
}

std::string numeric(int socket, int (*name)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (name(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return {};
  return numeric(reinterpret_cast<sockaddr*>(&address), size);
}

bool loopback(const std::string& address) { return address.starts_with("127.") || address == "::1"; }

// The numeric address of this machine that `host` names, on which the port is free.
std::string own_address(const std::string& host, int port) {
  const Addresses addresses(host, port);
  for (const addrinfo* a = addresses.first; a != nullptr; a = a->ai_next) {
    const Socket socket(::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (socket.descriptor < 0) continue;
    const int on = 1;
    ::setsockopt(socket.descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    int error = ::bind(socket.descriptor, a->ai_addr, a->ai_addrlen) == 0 ? 0 : errno;
    if (error == 0 && ::listen(socket.descriptor, 1) != 0) error = errno;
    if (error == 0) return numeric(a->ai_addr, a->ai_addrlen);
    if (error == EADDRNOTAVAIL) continue;
    const std::string where = "port " + std::to_string(port) + " of " + host;
    if (error == EADDRINUSE) throw Error(where + " is in use by another program; take another port");
    throw Error("cannot listen on " + where + ": " + std::strerror(error));
  }
  throw Error(host + " is not an address of this machine; rank 0 runs on the machine whose address is given to all");
}

struct Route {
  std::string from, to;  // numeric addresses of this machine and of rank 0's
};

// Tries until rank 0 listens.
Route reach(const std::string& host, int port, double seconds) {
  const Clock::time_point end = in(seconds);
  int error = ETIMEDOUT;
  do {
    const Addresses addresses(host, port);  // again each time: a name may move
    for (const addrinfo* a = addresses.first; a != nullptr; a = a->ai_next) {
      const Socket socket(::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      if (socket.descriptor < 0) continue;
      if (::connect(socket.descriptor, a->ai_addr, a->ai_addrlen) != 0) {
        error = errno;
        if (error != EINPROGRESS) continue;
        pollfd waiting{socket.descriptor, POLLOUT, 0};
        if (::poll(&waiting, 1, 2000) != 1) {
          error = ETIMEDOUT;
          continue;
        }
        socklen_t size = sizeof error;
        ::getsockopt(socket.descriptor, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error != 0) continue;
      }
      return {numeric(socket.descriptor, ::getsockname), numeric(socket.descriptor, ::getpeername)};
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  } while (Clock::now() < end);
  throw Error("nobody answers at " + host + ":" + std::to_string(port) + " within " + seconds_text(seconds) + " (" +
              std::strerror(error) + "); start rank 0 there, or see whether a firewall keeps the port closed");
}

// The devices of GLOO_SOCKET_IFNAME ("eth0" or "eth0,eth1"), as in PyTorch; otherwise that of the address.
void add_devices(c10d::ProcessGroupGloo::Options& options, const std::string& address) {
  const char* names = std::getenv("GLOO_SOCKET_IFNAME");
  if (names == nullptr || *names == '\0') {
    options.devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    return;
  }
  std::istringstream list(names);
  for (std::string name; std::getline(list, name, ',');) {
    try {
      options.devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(name));
    } catch (const std::exception& error) {
      throw Error("GLOO_SOCKET_IFNAME is " + std::string(names) + ", and " + name +
                  " cannot be used: " + first_line(error));
    }
  }
}

// Throws heed::Error unless both are equal objects.
void compare(const json& mine, const json& theirs, const std::string& who) {
  if (mine == theirs) return;
  json keys = mine;
  keys.update(theirs);
  for (const auto& item : keys.items()) {
    const auto value = [&](const json& side) {
      return side.contains(item.key()) ? side[item.key()].dump() : std::string("not set");
    };
    if (value(mine) == value(theirs)) continue;
    throw Error(item.key() + " is " + value(mine) + " in " + who + " and " + value(theirs) +
                " in rank 0; start all processes with the same options and data");
  }
}

}  // namespace

// What lies behind the class: the store where notes are left, and Gloo's connections.
struct Processes::Group {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  std::string meeting;  // "host:port", or empty
  bool over = false;    // something went wrong: what had to be said is said

  void set(const std::string& key, const std::string& value) {
    store->set(key, std::vector<uint8_t>(value.begin(), value.end()));
  }
  bool has(const std::string& key) { return store->check({key}); }
  std::string get(const std::string& key) {
    const std::vector<uint8_t> value = store->get(key);
    return {value.begin(), value.end()};
  }
  std::string get(const std::string& key, const std::string& otherwise) { return has(key) ? get(key) : otherwise; }
};

void parse_rendezvous(const std::string& address, Rendezvous& result) {
  const auto refuse = [&] {
    throw Error(address + " is not of the form tcp://HOST:PORT, such as tcp://192.168.0.1:29500");
  };
  const std::string prefix = "tcp://";
  if (!address.starts_with(prefix)) refuse();
  const size_t colon = address.rfind(':');
  std::string host = address.substr(prefix.size(), colon - std::min(colon, prefix.size()));
  const std::string port = address.substr(colon + 1);
  if (colon < prefix.size() || port.empty() || port.size() > 5 ||
      port.find_first_not_of("0123456789") != std::string::npos) {
    refuse();
  }
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.empty() || host.find_first_of(":/[]") != std::string::npos) {
    refuse();
  }
  result.host = host;
  result.port = std::stoi(port);
  if (result.port < 1 || result.port > 65535) refuse();
}

Processes::Processes(const Rendezvous& rendezvous, Children* children)
    : rank_(rendezvous.place.rank),
      world_(rendezvous.place.world),
      children_(children),
      group_(std::make_unique<Group>()) {
  if (world_ < 1 || rank_ < 0 || rank_ >= world_) {
    throw Error("there is no rank " + std::to_string(rank_) + " among " + std::to_string(world_) +
                " processes; ranks count from 0");
  }
  survive_broken_pipes();
  Group& g = *group_;
  const Clock::time_point end = in(rendezvous.seconds);
  Route route{"127.0.0.1", "127.0.0.1"};
  bool claimed = false;  // from then on the others count on this one
  try {
    if (!rendezvous.place.board.empty()) {
      g.store = c10::make_intrusive<c10d::FileStore>(rendezvous.place.board, world_);
    } else {
      g.meeting = rendezvous.host + ":" + std::to_string(rendezvous.port);
      if (rank_ == 0) {
        route.from = route.to = own_address(rendezvous.host, rendezvous.port);
      } else {
        route = reach(rendezvous.host, rendezvous.port, rendezvous.seconds);
      }
      c10d::TCPStoreOptions options;
      options.port = static_cast<uint16_t>(rendezvous.port);
      options.isServer = rank_ == 0;
      options.waitWorkers = false;
      options.timeout = milliseconds(rendezvous.seconds);
      g.store = c10::make_intrusive<c10d::TCPStore>(route.to, options);
    }
    g.store->setTimeout(milliseconds(rendezvous.seconds));

    // What must be equal before a number is exchanged. Who is refused here may come again with the right options.
    const json facts = {
        {"the number of processes", world_}, {"the version of Heed", version()}, {"LibTorch", TORCH_VERSION}};
    if (rank_ == 0) {
      g.set("start", facts.dump());
    } else {
      while (!g.has("start")) {
        if (Clock::now() > end) throw Error("what listens at " + g.meeting + " is not rank 0");
        nap();
      }
      compare(facts, json::parse(g.get("start")), "rank " + std::to_string(rank_));
    }
    if (g.store->add("claim/" + std::to_string(rank_), 1) != 1) {
      throw Error("rank " + std::to_string(rank_) + " has come already; every process needs a rank of its own");
    }
    claimed = true;
    g.set("address/" + std::to_string(rank_), route.from);
    g.set("reach/" + std::to_string(rank_), route.to);
    g.set("here/" + std::to_string(rank_), "");
    while (true) {
      std::vector<int> missing;
      for (int r = 0; r < world_; ++r) {
        if (!g.has("here/" + std::to_string(r))) missing.push_back(r);
      }
      if (missing.empty()) break;
      const std::string casualty = children_ != nullptr ? children_->casualty() : "";
      if (!casualty.empty()) throw Error(g.get("words", casualty));
      if (g.has("words")) throw Error(g.get("words"));
      if (Clock::now() > end) {
        throw Error(join(missing) + " of " + std::to_string(world_) + " did not come" +
                    (g.meeting.empty() ? "" : " to " + g.meeting) + " within " + seconds_text(rendezvous.seconds) +
                    "; start all of them, or wait longer");
      }
      nap();
    }

    // On rank 0's machine its address may be a loopback one, by which the others cannot come: then it is the one by
    // which they reached it.
    for (int r = 1; r < world_ && loopback(route.from); ++r) {
      const std::string seen = g.get("reach/" + std::to_string(r));
      if (!loopback(seen)) route.from = seen;
    }
    // A group has one timeout, for connecting and for sums. All are here, so what cannot connect soon never will: a
    // first group finds that out, and the second one may wait longer.
    for (const double factor : {1, 10}) {
      auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(factor * rendezvous.seconds));
      add_devices(*options, route.from);
      auto store = c10::make_intrusive<c10d::PrefixStore>("gloo/" + std::to_string(factor), g.store);
      try {
        g.gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank_, world_, options);
      } catch (const std::exception& error) {
        throw Error("the processes have met at " + g.meeting + ", but " + route.from +
                    " and the others cannot connect (" + first_line(error) +
                    "); Gloo takes any free port, so a firewall between them must let all ports through");
      }
    }
  } catch (const Error& error) {
    if (claimed) last_words(error.what());
    throw;
  } catch (const std::exception& error) {
    throw Error("the processes cannot meet" + (g.meeting.empty() ? "" : " at " + g.meeting) + ": " + first_line(error));
  }
}

Processes::~Processes() {
  Group& g = *group_;
  if (g.over || g.store == nullptr) return;
  try {
    if (rank_ > 0) {
      g.set("left/" + std::to_string(rank_), "");
    } else {  // the store goes with this process: the others must have read what they need
      const Clock::time_point end = in(kFarewell);
      for (int r = 1; r < world_; ++r) {
        while (!g.has("left/" + std::to_string(r)) && Clock::now() < end) nap();
      }
    }
  } catch (const std::exception&) {  // they are gone already
  }
}

void Processes::await(const std::string& key) {
  Group& g = *group_;
  try {
    while (!g.has(key)) {
      if (g.has("words") || (children_ != nullptr && !children_->casualty().empty())) lost("");
      nap();
    }
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    lost(first_line(error));
  }
}

void Processes::agree(const json& facts) {
  const std::string theirs = tell(facts.dump());
  compare(facts, json::parse(theirs), "rank " + std::to_string(rank_));
  const std::string key = "agreed/" + std::to_string(calls_++) + "/";
  run([&] {
    group_->set(key + std::to_string(rank_), "");
    return nullptr;
  });
  for (int r = 0; r < world_; ++r) await(key + std::to_string(r));
}

std::string Processes::tell(const std::string& text) {
  const std::string key = "tell/" + std::to_string(calls_++);
  std::string result = text;
  if (rank_ > 0) await(key);
  run([&] {
    if (rank_ > 0) {
      result = group_->get(key);
    } else {
      group_->set(key, text);
    }
    return nullptr;
  });
  return result;
}

// Does what may fail because another process is gone. `start` returns c10d's Work to wait for, or null.
template <class Start>
void Processes::run(const Start& start) {
  try {
    if (group_->over) throw Error("the group has ended");
    const auto work = start();
    if constexpr (!std::is_null_pointer_v<decltype(start())>) work->wait();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    lost(first_line(error));
  }
}

void Processes::sum(torch::Tensor tensor) {
  std::vector<torch::Tensor> tensors{std::move(tensor)};
  run([&] { return group_->gloo->allreduce(tensors); });
}

void Processes::sum(std::span<double> numbers) {
  sum(torch::from_blob(numbers.data(), {static_cast<int64_t>(numbers.size())}, torch::kFloat64));
}

void Processes::broadcast(torch::Tensor tensor) {
  std::vector<torch::Tensor> tensors{std::move(tensor)};
  run([&] { return group_->gloo->broadcast(tensors); });
}

void Processes::last_words(const std::string& reason) noexcept {
  Group& g = *group_;
  if (g.over || g.store == nullptr) return;
  g.over = true;
  try {
    const std::string me = std::to_string(rank_);
    if (!g.has("words")) g.set("words", "rank " + me + " of " + std::to_string(world_) + " ended: " + reason);
    g.gloo.reset();  // closes the connections, which wakes those that wait for numbers
    if (rank_ > 0) return g.set("heard/" + me, "");
    const Clock::time_point end = in(kFarewell);
    for (int r = 1; r < world_; ++r) {
      if (!g.has("here/" + std::to_string(r))) continue;
      while (!g.has("heard/" + std::to_string(r)) && Clock::now() < end) nap();
    }
  } catch (const std::exception&) {  // nobody is left to hear it
  }
}

// Finds out who is gone. Those that live say so and close their connections, which lets the ones farther away notice;
// rank 0 calls the roll and tells the others whom it misses.
void Processes::lost(const std::string& detail) {
  Group& g = *group_;
  g.over = true;
  const std::string of_world = " of " + std::to_string(world_), me = std::to_string(rank_);
  std::string verdict;
  try {
    if (rank_ > 0) g.set("alive/" + me, "");
    g.gloo.reset();
    const Clock::time_point end = in(rank_ == 0 ? kRollCall : 3 * kRollCall);
    std::vector<int> silent;
    do {
      nap();
      if (g.has("words")) {
        verdict = g.get("words");
      } else if (rank_ > 0) {
        if (g.has("verdict")) verdict = g.get("verdict");
      } else {
        if (children_ != nullptr) verdict = children_->casualty();
        if (!verdict.empty()) verdict = g.get("words", verdict);
        silent.clear();
        for (int r = 1; r < world_; ++r) {
          if (!g.has("alive/" + std::to_string(r))) silent.push_back(r);
        }
      }
    } while (verdict.empty() && Clock::now() < end && (rank_ > 0 || !silent.empty()));
    if (verdict.empty() && rank_ > 0) {
      verdict = "rank 0" + of_world + " no longer answers (" + detail + ")";
    } else if (verdict.empty() && silent.empty()) {
      verdict = "a connection between the processes broke (" + detail + ")";
    } else if (verdict.empty()) {
      verdict = join(silent) + of_world + " no longer answer" + (silent.size() == 1 ? "s" : "");
      if (!g.meeting.empty() && silent.size() == 1) {
        verdict += " from " + g.get("address/" + std::to_string(silent[0]));
      }
      verdict += " (" + detail + ")";
    }
    if (rank_ == 0) {
      g.set("verdict", verdict);
      const Clock::time_point patience = in(kFarewell);
      for (int r = 1; r < world_; ++r) {
        if (!g.has("alive/" + std::to_string(r))) continue;
        while (!g.has("heard/" + std::to_string(r)) && Clock::now() < patience) nap();
      }
    } else {
      g.set("heard/" + me, "");
    }
  } catch (const std::exception&) {  // the store lives in rank 0
    if (verdict.empty()) verdict = "rank 0" + of_world + (g.meeting.empty() ? "" : " at " + g.meeting) + " is gone";
  }
  throw ProcessLost(verdict);
}

}  // namespace heed::nn
