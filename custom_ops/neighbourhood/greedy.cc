#include "custom_ops/neighbourhood/greedy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>
#include <utility>

#include "custom_ops/neighbourhood/neighbours.h"

namespace tfrec {
namespace {

// Candidates that are looked at together. More of them end fewer searches early, and cost more
// comparisons among themselves.
constexpr int64_t kBlock = 512;

struct Candidate {
  double gain;
  int64_t point;
  // Whether this one is chosen before the other.
  bool Leads(const Candidate& other) const {
    return gain > other.gain || (gain == other.gain && point < other.point);
  }
};

struct Trails {
  bool operator()(const Candidate& a, const Candidate& b) const { return b.Leads(a); }
};

// Nothing leads less.
constexpr Candidate kNone = {-std::numeric_limits<double>::infinity(),
                             std::numeric_limits<int64_t>::max()};

// How many points of each class are left.
std::vector<int64_t> Left(const Selection& selection) {
  std::vector<int64_t> left(selection.num_classes);
  for (int64_t point = 0; point < selection.count; ++point) {
    left[selection.classes[point]] += !selection.chosen[point];
  }
  return left;
}

// The class whose turn it is.
int64_t Turn(const std::vector<int64_t>& left, const Selection& selection) {
  int64_t turn = selection.next_class;
  while (left[turn] == 0) turn = (turn + 1) % selection.num_classes;
  return turn;
}

// tanh(a + b) - tanh(a) from exp(-2 a) and exp(-2 b), without a difference of two near 1.
double Gain(double decay, double decay_of_addition) {
  return 2 * decay * (1 - decay_of_addition) / ((1 + decay) * (1 + decay * decay_of_addition));
}

// ---- Without a graph.

// The candidates of one class: the leading ones, and a bound of all others of it.
struct Block {
  std::vector<Candidate> candidates;
  Candidate bound = kNone;
  int64_t first = 0;  // position of the first one among the candidates of all classes
};

std::vector<Block> LeadingCandidates(const Selection& selection, const std::vector<double>& gains,
                                     const std::vector<int64_t>& left) {
  std::vector<Block> blocks(selection.num_classes);
  int64_t classes = 0;
  for (int64_t c = 0; c < selection.num_classes; ++c) {
    blocks[c].candidates.reserve(left[c]);
    classes += left[c] > 0;
  }
  for (int64_t point = 0; point < selection.count; ++point) {
    if (selection.chosen[point]) continue;
    blocks[selection.classes[point]].candidates.push_back({gains[point], point});
  }
  const int64_t share = std::max<int64_t>(2, kBlock / classes);
  const auto leads = [](const Candidate& a, const Candidate& b) { return a.Leads(b); };
  for (Block& block : blocks) {
    std::vector<Candidate>& all = block.candidates;
    if (static_cast<int64_t>(all.size()) <= share) continue;
    std::nth_element(all.begin(), all.begin() + share, all.end(), leads);
    block.bound = all[share];
    all.resize(share);
    all.shrink_to_fit();
  }
  return blocks;
}

// The neighbours of points among themselves, by their positions in `members`.
std::vector<std::vector<Neighbour>> Among(const Points& points, const std::vector<int64_t>& members,
                                          const Parallel& parallel) {
  const int64_t count = members.size();
  std::vector<float> rows(count * points.Dim());
  for (int64_t k = 0; k < count; ++k) {
    std::copy_n(points.Row(members[k]), points.Dim(), rows.data() + k * points.Dim());
  }
  const Points some(rows.data(), count, points.Dim(), points.Threshold(), points.InstructionSet(),
                    parallel);
  std::vector<int64_t> degrees(count);
  return FindNeighbours(some, 0, count, count, parallel, degrees.data());
}

}  // namespace

double LogGain(double coverage, double addition, double scale) {
  const double a = -2 * coverage / scale;
  const double b = -2 * addition / scale;
  return std::log(2.0) + a + std::log(-std::expm1(b)) - std::log1p(std::exp(a)) -
         std::log1p(std::exp(a + b));
}

void ChooseByOwnGain(const Points& points, const Parallel& parallel, int64_t picks,
                     Selection* selection, int64_t* picked, double* gains) {
  const int64_t count = selection->count;
  double* const coverage = selection->coverage;
  const auto gain_of = [&](int64_t point) {
    return LogGain(coverage[point], selection->confidences[point], selection->scale);
  };
  std::vector<int64_t> left = Left(*selection);
  std::vector<double> log_gains(count);
  std::vector<double> seen(count, -1);  // the coverage for which a gain was computed
  std::vector<uint8_t> is_candidate(count);

  for (int64_t done = 0; done < picks;) {
    parallel.Split(count, parallel.Blocks(count, 1024), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t point = begin; point < end; ++point) {
        if (coverage[point] == seen[point] || selection->chosen[point]) continue;
        log_gains[point] = gain_of(point);
        seen[point] = coverage[point];
      }
    });
    std::vector<Block> blocks = LeadingCandidates(*selection, log_gains, left);
    std::vector<Candidate*> candidates;
    std::vector<int64_t> members;
    for (Block& block : blocks) {
      block.first = members.size();
      for (Candidate& candidate : block.candidates) {
        candidates.push_back(&candidate);
        members.push_back(candidate.point);
      }
    }
    for (const int64_t point : members) is_candidate[point] = 1;
    const std::vector<std::vector<Neighbour>> neighbours = Among(points, members, parallel);

    // Picks, until a point outside the block may lead. Only candidates learn of a pick at once.
    std::vector<int64_t> round;
    while (done < picks) {
      const int64_t turn = Turn(left, *selection);
      const Block& block = blocks[turn];
      const Candidate* best = &kNone;
      for (const Candidate& candidate : block.candidates) {
        if (!selection->chosen[candidate.point] && candidate.Leads(*best)) best = &candidate;
      }
      if (best == &kNone || block.bound.Leads(*best)) break;
      picked[done] = best->point;
      gains[done++] = std::exp(best->gain);
      round.push_back(best->point);
      selection->chosen[best->point] = 1;
      selection->next_class = (turn + 1) % selection->num_classes;
      --left[turn];
      const double confidence = selection->confidences[best->point];
      const int64_t place = block.first + (best - block.candidates.data());
      for (const Neighbour& neighbour : neighbours[place]) {
        Candidate* const candidate = candidates[neighbour.point];
        coverage[candidate->point] += neighbour.similarity * confidence;
        candidate->gain = gain_of(candidate->point);
      }
    }

    const Points::Queries queries = points.MakeQueries(std::move(round));
    const int64_t tiles = points.Tiles();
    parallel.Split(tiles, parallel.Blocks(tiles, 4), [&](int64_t, int64_t begin, int64_t end) {
      points.ForEachNeighbour(queries, begin, end, [&](int64_t q, int64_t point, float similarity) {
        if (is_candidate[point]) return;
        coverage[point] += similarity * selection->confidences[queries.points[q]];
      });
    });
    for (const int64_t point : members) is_candidate[point] = 0;
  }
}

void ChooseOverGraph(const Graph& graph, bool own, const Parallel& parallel, int64_t picks,
                     Selection* selection, double* bounds, int64_t* picked, double* gains) {
  const int64_t count = selection->count;
  double* const coverage = selection->coverage;
  const auto decay_of = [&](double covered) { return std::exp(-2 * covered / selection->scale); };
  std::vector<double> decays(own ? 0 : count);
  std::vector<double> additions(own ? 0 : graph.splits[count]);  // of each edge, as a decay
  parallel.Split(
      decays.size(), parallel.Blocks(decays.size(), 256), [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t point = begin; point < end; ++point) {
          decays[point] = decay_of(coverage[point]);
          for (int64_t e = graph.splits[point]; e < graph.splits[point + 1]; ++e) {
            additions[e] = decay_of(graph.similarities[e] * selection->confidences[point]);
          }
        }
      });

  const auto gain_of = [&](int64_t point) {
    if (own) return LogGain(coverage[point], selection->confidences[point], selection->scale);
    double gain = 0;
    for (int64_t e = graph.splits[point]; e < graph.splits[point + 1]; ++e) {
      gain += Gain(decays[graph.neighbours[e]], additions[e]);
    }
    return gain;
  };
  parallel.Split(count, parallel.Blocks(count, 256), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t point = begin; point < end; ++point) {
      if (bounds[point] == std::numeric_limits<double>::infinity()) bounds[point] = gain_of(point);
    }
  });

  std::vector<int64_t> left = Left(*selection);
  using Queue = std::priority_queue<Candidate, std::vector<Candidate>, Trails>;
  std::vector<std::vector<Candidate>> members(selection->num_classes);
  for (int64_t point = 0; point < count; ++point) {
    if (!selection->chosen[point]) {
      members[selection->classes[point]].push_back({bounds[point], point});
    }
  }
  std::vector<Queue> queues;
  for (std::vector<Candidate>& of_class : members)
    queues.emplace_back(Trails(), std::move(of_class));

  for (int64_t done = 0; done < picks; ++done) {
    const int64_t turn = Turn(left, *selection);
    Queue& queue = queues[turn];
    Candidate best = queue.top();
    for (;;) {  // one whose fresh gain still leads all stale ones
      queue.pop();
      best.gain = bounds[best.point] = gain_of(best.point);
      if (queue.empty() || best.Leads(queue.top())) break;
      queue.push(best);
      best = queue.top();
    }
    picked[done] = best.point;
    gains[done] = own ? std::exp(best.gain) : best.gain;
    selection->chosen[best.point] = 1;
    selection->next_class = (turn + 1) % selection->num_classes;
    --left[turn];
    for (int64_t e = graph.splits[best.point]; e < graph.splits[best.point + 1]; ++e) {
      const int64_t point = graph.neighbours[e];
      coverage[point] += graph.similarities[e] * selection->confidences[best.point];
      if (!own) decays[point] = decay_of(coverage[point]);
    }
  }
}

}  // namespace tfrec
