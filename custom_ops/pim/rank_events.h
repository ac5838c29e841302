// What happens in each group of ranks in a gather-reduce, its casted backward pass and the update
// that follows. It depends on ids only. All else that a device counts follows from these numbers.
#ifndef TFREC_CUSTOM_OPS_PIM_RANK_EVENTS_H_
#define TFREC_CUSTOM_OPS_PIM_RANK_EVENTS_H_

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "custom_ops/casting/casting.h"
#include "custom_ops/common/bags.h"
#include "custom_ops/pim/placement.h"

namespace tfrec {

// The order of the columns of the op `PimEvents`.
struct RankEvents {
  // Forward: rows are gathered, and summed to a partial sum for each bag.
  int64_t lookups = 0;
  int64_t bags = 0;         // that have a lookup here
  int64_t cache_hits = 0;   // lookups that the cache beside the rank answers
  int64_t activations = 0;  // pages opened by the others
  // Backward: the gradients of bags arrive, and are gathered and summed for each row.
  int64_t gradient_lookups = 0;
  int64_t gradient_bags = 0;
  int64_t gradient_cache_hits = 0;
  int64_t gradient_activations = 0;
  // Update: each row is read and written once.
  int64_t rows = 0;
  int64_t row_activations = 0;
  int64_t home_rows = 0;  // of them, without those that are copies
};
inline constexpr int kEventKinds = sizeof(RankEvents) / sizeof(int64_t);

// What was last seen at each of `count` places: -1 in the beginning. A device may be said to have
// more places than this machine has memory, so that of many places only those are held that are
// used.
class LastSeen {
 public:
  LastSeen(int64_t count, int64_t most_in_array) : count_(count) {
    if (count <= most_in_array) array_.assign(count, -1);
  }
  int64_t& At(int64_t number) {
    const int64_t place = number % count_;
    return array_.empty() ? used_.try_emplace(place, -1).first->second : array_[place];
  }

 private:
  int64_t count_;
  std::vector<int64_t> array_;
  std::unordered_map<int64_t, int64_t> used_;
};

// The open page of each bank of one rank of so many, and the rows in the cache beside it. All banks
// are closed and the cache is empty in the beginning.
class OpenPages {
 public:
  explicit OpenPages(const RankMemory& memory, int64_t ranks = 1)
      : memory_(memory),
        open_(memory.banks, kPlacesInArrays / ranks),
        cache_(memory.cached_rows, kPlacesInArrays / ranks) {}

  // Whether the cache has the row. It takes the row in, in the one place where it may lie.
  bool IsCached(int64_t row) {
    if (memory_.cached_rows == 0) return false;
    int64_t& place = cache_.At(row);
    const bool hit = place == row;
    place = row;
    return hit;
  }
  // Pages that have to be opened to access the row: neighbouring pages are in different banks.
  int64_t Open(int64_t row) {
    const int64_t page = row / memory_.rows_per_page;
    int64_t& open = open_.At(page);
    if (open == page) return 0;
    open = page;
    return memory_.pages_per_row;
  }

 private:
  static constexpr int64_t kPlacesInArrays = int64_t{1} << 22;  // 32 MiB

  const RankMemory memory_;
  LastSeen open_;
  LastSeen cache_;
};

// Adds what the forward pass does to `events`, which has an entry for each group. The ids must be
// rows, or padding.
template <typename Id>
void CountForward(const Bags<Id>& bags, const Placement& placement, const RankMemory& memory,
                  RankEvents* events) {
  std::vector<OpenPages> pages(placement.groups(), OpenPages(memory, placement.groups()));
  std::vector<int64_t> last_bag(placement.groups(), -1);
  for (int64_t bag = 0; bags.lookups > 0 && bag < bags.count; ++bag) {
    for (int64_t k = bags.Begin(bag); k < bags.End(bag); ++k) {
      if (bags.IsPadding(k)) continue;
      const int64_t group = placement.GroupOf(bags.ids[k], k);
      RankEvents& of_group = events[group];
      ++of_group.lookups;
      of_group.bags += last_bag[group] != bag;
      last_bag[group] = bag;
      const int64_t row = placement.LocalRow(bags.ids[k]);
      if (pages[group].IsCached(row)) {
        ++of_group.cache_hits;
      } else {
        of_group.activations += pages[group].Open(row);
      }
    }
  }
}

// Adds what the backward pass and the update do. A row that is everywhere is updated everywhere.
template <typename Id>
void CountBackward(const Bags<Id>& bags, const Casting& casting, const Placement& placement,
                   const RankMemory& memory, RankEvents* events) {
  std::vector<int64_t> bag_of(bags.lookups);
  for (int64_t bag = 0; bags.lookups > 0 && bag < bags.count; ++bag) {
    for (int64_t k = bags.Begin(bag); k < bags.End(bag); ++k) bag_of[k] = bag;
  }
  const auto for_groups = [&](int64_t id, const auto& visit) {
    if (!placement.IsHot(id)) return visit(placement.HomeOf(id));
    for (int64_t group = 0; group < placement.groups(); ++group) visit(group);
  };
  std::vector<int64_t> last_bag(placement.groups(), -1);
  for (int64_t k = 0; k < bags.lookups; ++k) {
    if (bags.IsPadding(k)) continue;
    for_groups(bags.ids[k], [&](int64_t group) {
      events[group].gradient_bags += last_bag[group] != bag_of[k];
      last_bag[group] = bag_of[k];
    });
  }
  std::vector<OpenPages> gradients(placement.groups(), OpenPages(memory, placement.groups()));
  std::vector<OpenPages> rows(placement.groups(), OpenPages(memory, placement.groups()));
  for (int64_t i = 0; i < casting.count; ++i) {
    const int64_t id = casting.Id(i);
    const int64_t bag = bag_of[casting.Position(i)];
    const bool is_first = i == 0 || casting.Id(i - 1) != id;
    const int64_t row = is_first ? placement.LocalRow(id) : 0;
    for_groups(id, [&](int64_t group) {
      RankEvents& of_group = events[group];
      ++of_group.gradient_lookups;
      if (gradients[group].IsCached(bag)) {
        ++of_group.gradient_cache_hits;
      } else {
        of_group.gradient_activations += gradients[group].Open(bag);
      }
      if (!is_first) return;
      ++of_group.rows;
      of_group.home_rows += group == placement.HomeOf(id);
      of_group.row_activations += rows[group].Open(row);
    });
  }
}

}  // namespace tfrec

#endif  // TFREC_CUSTOM_OPS_PIM_RANK_EVENTS_H_
