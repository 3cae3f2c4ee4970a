// Choosing the SIMD target: HEED_TARGET, set_target, and what there is to choose from.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "targets.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "heed/attention.h"
#include "hwy/highway.h"
#include "passes.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {
// Answers for the code that really runs: it is dispatched as the passes are.
const char* Name() { return hwy::TargetName(HWY_TARGET); }
}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed {
HWY_EXPORT(Name);

namespace {

std::mutex mutex;
bool settled = false;

// Best first: Highway gives better targets lower bits. The baseline runs anywhere.
std::vector<int64_t> supported() {
  std::vector<int64_t> bits;
  for (int64_t rest = (hwy::SupportedTargets() | HWY_STATIC_TARGET) & HWY_TARGETS; rest != 0; rest &= rest - 1)
    bits.push_back(rest & -rest);
  return bits;
}

void choose(const std::string& name, const std::string& who) {
  std::string have;
  for (const int64_t bit : supported()) {
    const std::string known = hwy::TargetName(bit);
    if (known == name) {
      hwy::GetChosenTarget().Update(bit);
      return;
    }
    have += (have.empty() ? "" : ", ") + known;
  }
  throw Error(who + " asks for '" + name + "', which this machine cannot run; it can run " + have);
}

}  // namespace

void settle_target() {
  std::lock_guard lock(mutex);
  if (settled) return;
  if (const char* name = std::getenv("HEED_TARGET"); name && *name) choose(name, "HEED_TARGET");
  settled = true;
}

std::string target() {
  settle_target();
  return HWY_DYNAMIC_DISPATCH(Name)();
}

std::vector<std::string> targets() {
  std::vector<std::string> names;
  for (const int64_t bit : supported()) names.push_back(hwy::TargetName(bit));
  return names;
}

void set_target(const std::string& name) {
  std::lock_guard lock(mutex);
  choose(name, "set_target");
  settled = true;
}

}  // namespace heed
#endif
