// Stream capture and graphs of the emulated runtime.
//
// A graph keeps the dependencies that were captured. A launch runs its nodes in one legal order,
// which the eager mask decides as it does for streams: nodes captured on an eager stream go ahead
// of the others as far as their dependencies allow. A dependency that was forgotten in the capture
// therefore shows under some mask.

#include <algorithm>
#include <utility>

#include "tests/emu/runtime_state.h"

namespace emu {
namespace {

// All nodes that have to be done before those of `frontier` are, these included.
std::vector<bool> Ancestors(const std::vector<Node>& nodes, std::vector<int> frontier) {
  std::vector<bool> seen(nodes.size());
  while (!frontier.empty()) {
    const auto node = static_cast<std::size_t>(frontier.back());
    frontier.pop_back();
    if (seen[node]) continue;
    seen[node] = true;
    frontier.insert(frontier.end(), nodes[node].after.begin(), nodes[node].after.end());
  }
  return seen;
}

bool Joined(const Runtime& runtime, const CUstream_st& origin) {
  const Capture& capture = *origin.capture;
  const std::vector<bool> reached = Ancestors(capture.nodes, origin.frontier);
  for (const cudaStream_t stream : runtime.streams) {
    if (stream->capture != origin.capture) continue;
    for (const int node : stream->frontier) {
      if (!reached[static_cast<std::size_t>(node)]) return false;
    }
  }
  return true;
}

bool Eager(const Node& node, unsigned mask) {
  return node.branch >= 0 && node.branch < 32 && (mask >> node.branch & 1U) != 0;
}

std::vector<std::size_t> LaunchOrder(const std::vector<Node>& nodes, unsigned mask) {
  std::vector<std::size_t> order;
  std::vector<bool> done(nodes.size());
  const auto ready = [&](const Node& node) {
    return std::all_of(node.after.begin(), node.after.end(),
                       [&](int before) { return done[static_cast<std::size_t>(before)]; });
  };
  while (order.size() < nodes.size()) {
    std::size_t pick = nodes.size();
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      if (done[i] || !ready(nodes[i])) continue;
      if (pick == nodes.size() || (Eager(nodes[i], mask) && !Eager(nodes[pick], mask))) pick = i;
    }
    done[pick] = true;
    order.push_back(pick);
  }
  return order;
}

cudaError_t BeginCapture(Runtime& runtime, cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Runtime::Target target = runtime.Find(stream);
  if (target.stream == nullptr) return cudaErrorStreamCaptureUnsupported;
  if (stream->capture != nullptr) return cudaErrorIllegalState;
  auto capture = std::make_shared<Capture>();
  capture->id = runtime.next_capture++;
  capture->mode = mode;
  capture->thread = ThisThread();
  capture->origin = stream;
  stream->capture = capture;
  stream->frontier.clear();
  runtime.captures.push_back(capture);
  return cudaSuccess;
}

cudaError_t EndCapture(Runtime& runtime, cudaStream_t stream, cudaGraph_t* graph) {
  const Runtime::Target target = runtime.Find(stream);
  if (target.stream == nullptr) return cudaErrorInvalidResourceHandle;
  const std::shared_ptr<Capture> capture = stream->capture;
  if (graph == nullptr) return cudaErrorInvalidValue;
  *graph = nullptr;
  if (capture == nullptr) return cudaErrorIllegalState;
  if (capture->origin != stream) return cudaErrorStreamCaptureUnmatched;
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != ThisThread()) {
    return cudaErrorStreamCaptureWrongThread;
  }
  const bool joined = Joined(runtime, *stream);
  for (const cudaStream_t other : runtime.streams) {
    if (other->capture == capture) other->capture = nullptr;
  }
  std::erase(runtime.captures, capture);
  capture->ended = true;
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (!joined) return cudaErrorStreamCaptureUnjoined;
  *graph = new CUgraph_st{std::move(capture->nodes)};
  runtime.graphs.insert(*graph);
  return cudaSuccess;
}

cudaError_t LaunchGraph(Runtime& runtime, cudaGraphExec_t graph, cudaStream_t handle) {
  if (runtime.executables.count(graph) == 0) return cudaErrorInvalidResourceHandle;
  const Runtime::Target target = runtime.Find(handle);
  if (target.queue == nullptr) return cudaErrorInvalidResourceHandle;
  if (target.stream != nullptr && target.stream->capture != nullptr) {
    return cudaErrorStreamCaptureUnsupported;  // child graphs are not emulated
  }
  if (target.stream == nullptr) {
    runtime.RunUntil(graph->last);
  } else if (!graph->last.Passed()) {
    target.queue->operations.push_back({[] { return true; }, graph->last});
  }
  for (const std::size_t node : LaunchOrder(graph->nodes, runtime.options.eager_mask)) {
    const Node& next = graph->nodes[node];
    if (next.event != nullptr && runtime.events.count(next.event) == 0) {
      return cudaErrorInvalidResourceHandle;  // destroyed since the capture
    }
    const cudaError_t error = next.event == nullptr ? runtime.Enqueue(handle, next.run)
                                                    : runtime.RecordNow(next.event, handle);
    if (error != cudaSuccess) return error;
  }
  graph->last = {target.queue, target.queue->End()};
  return cudaSuccess;
}

cudaError_t Instantiate(cudaGraphExec_t* executable, cudaGraph_t graph) {
  return Api("cudaGraphInstantiate", [&](Runtime& runtime) {
    if (executable == nullptr || runtime.graphs.count(graph) == 0) return cudaErrorInvalidValue;
    *executable = new CUgraphExec_st{graph->nodes, {}};
    runtime.executables.insert(*executable);
    return cudaSuccess;
  });
}

}  // namespace
}  // namespace emu

using emu::Api;
using emu::Runtime;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return Api("cudaStreamBeginCapture",
             [&](Runtime& runtime) { return emu::BeginCapture(runtime, stream, mode); });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return Api("cudaStreamEndCapture",
             [&](Runtime& runtime) { return emu::EndCapture(runtime, stream, graph); });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return Api("cudaStreamIsCapturing", [&](Runtime& runtime) {
    const Runtime::Target target = runtime.Find(stream);
    if (target.queue == nullptr) return cudaErrorInvalidResourceHandle;
    *status = cudaStreamCaptureStatusNone;
    if (target.stream != nullptr && stream->capture != nullptr) {
      *status = stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return Api("cudaThreadExchangeStreamCaptureMode", [&](Runtime&) {
    std::swap(*mode, emu::CaptureMode());
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  return emu::Instantiate(executable, graph);
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                          unsigned long long) {
  return emu::Instantiate(executable, graph);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  return Api("cudaGraphLaunch",
             [&](Runtime& runtime) { return emu::LaunchGraph(runtime, graph, stream); });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t graph, cudaStream_t) {
  return Api("cudaGraphUpload", [&](Runtime& runtime) {
    return runtime.executables.count(graph) == 0 ? cudaErrorInvalidValue : cudaSuccess;
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return Api("cudaGraphGetNodes", [&](Runtime& runtime) {
    // Only the number of nodes: there are no handles for single ones.
    if (runtime.graphs.count(graph) == 0 || nodes != nullptr) return cudaErrorInvalidValue;
    *count = graph->nodes.size();
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return Api("cudaGraphDestroy", [&](Runtime& runtime) {
    if (runtime.graphs.erase(graph) == 0) return cudaErrorInvalidValue;
    delete graph;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  return Api("cudaGraphExecDestroy", [&](Runtime& runtime) {
    if (runtime.executables.erase(graph) == 0) return cudaErrorInvalidValue;
    delete graph;
    return cudaSuccess;
  });
}

}  // extern "C"
