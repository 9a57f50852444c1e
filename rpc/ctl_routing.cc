// metattnctl routing get, routing set.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "metattn/v1/admin.pb.h"
#include "rpc/client.h"
#include "rpc/ctl_command.h"
#include "rpc/flags.h"

namespace metattn {
namespace {

const std::map<std::string, int> kRoutes = {{"full", v1::ROUTE_FULL},
                                            {"linear", v1::ROUTE_LINEAR},
                                            {"local", v1::ROUTE_LOCAL},
                                            {"routed", v1::ROUTE_ROUTED}};
const std::map<std::string, bool> kOnOff = {{"on", true}, {"off", false}};

std::string RouteText(int route) {
  for (const auto& [name, value] : kRoutes) {
    if (value == route) return name;
  }
  return "unknown";
}

std::string PolicyText(const v1::RoutingPolicy& p) {
  std::string allowed;
  for (const int route : p.allowed_routes().routes()) {
    absl::StrAppend(&allowed, allowed.empty() ? "" : ", ", RouteText(route));
  }
  return absl::StrFormat(
      "default: %s, cost weight %g, eta %g\n"
      "requests may ask for: %s; cost weight %g to %g; eta %g to %g\n"
      "elastic: %s (load: queue wait above %g s or %g s between tokens)\n"
      "force full: %s\n",
      RouteText(p.default_route()), p.cost_weight(), p.eta(), allowed, p.min_cost_weight(),
      p.max_cost_weight(), p.min_eta(), p.max_eta(), p.elastic() ? "on" : "off",
      p.elastic_queue_wait_seconds(), p.elastic_inter_token_seconds(),
      p.force_full() ? "on" : "off");
}

std::string SharesText(const std::string& title, const v1::RoutingShares& shares) {
  const v1::RoutingSummary& s = shares.summary();
  return absl::StrFormat("%-12s %6.1f%% %6.1f%% %6.1f%% %6.1f%% %7.3f %9.1f%% %14d\n", title,
                         100 * s.full(), 100 * s.linear(), 100 * s.local(), 100 * s.mixture(),
                         s.mean_uncertainty(), 100 * s.attention_bytes_ratio(), shares.decisions());
}

std::string StatusText(const v1::RoutingStatus& status) {
  std::string text = PolicyText(status.policy());
  std::string levels;
  for (const float level : status.cost_weight_levels()) absl::StrAppend(&levels, " ", level);
  absl::StrAppend(&text, "controller: ", status.controller().empty() ? "none" : status.controller(),
                  levels.empty() ? "" : ", levels of the cost weight:", levels, "\n");
  absl::StrAppend(&text, absl::StrFormat("cost weight now: %g\n\n", status.cost_weight_now()));
  absl::StrAppend(
      &text, absl::StrFormat("%-12s %7s %7s %7s %7s %7s %10s %14s\n", "", "full", "linear", "local",
                             "mixture", "mean U", "of bytes", "decisions"));
  absl::StrAppend(&text, SharesText("since start", status.since_start()),
                  SharesText("last minute", status.last_minute()));
  for (int layer = 0; layer < status.layers_size(); ++layer) {
    absl::StrAppend(&text, SharesText(absl::StrCat("layer ", layer), status.layers(layer)));
  }
  return text;
}

int Get(int argc, char** argv) {
  Common common;
  CLI::App app("Show the routing policy in force and what routing did.", "metattnctl routing get");
  AddCommon(app, &common);
  if (auto code = Parse(app, argc, argv)) return *code;
  auto status = Client::Connect(common.server)->GetRouting();
  if (!status.ok()) return Report(status.status());
  std::cout << (common.json ? ToJson(*status, true) + "\n" : StatusText(*status)) << std::flush;
  return EXIT_SUCCESS;
}

struct Change {
  std::optional<int> route;
  std::vector<int> allowed;
  std::optional<float> cost_weight, eta, min_cost_weight, max_cost_weight, min_eta, max_eta;
  std::optional<bool> elastic, force_full;
  std::optional<double> queue_wait_s, inter_token_s;
};

// No environment twins: what changes a running server is typed, not inherited.
template <typename T>
CLI::Option* AddTyped(CLI::App& app, const char* name, T& value, const char* help) {
  return app.add_option(name, value, help);
}

void AddChange(CLI::App& app, Change* c) {
  const auto routes =
      CLI::CheckedTransformer(kRoutes, CLI::ignore_case).description("{full,linear,local,routed}");
  const auto on_off = CLI::CheckedTransformer(kOnOff, CLI::ignore_case).description("{on,off}");
  AddTyped(app, "--route", c->route, "attention of requests that name none")
      ->type_name("ROUTE")
      ->transform(routes);
  AddTyped(app, "--cost-weight", c->cost_weight, "lambda >= 0 of routed requests that name none");
  AddTyped(app, "--eta", c->eta, "0 to 1, of routed requests that name none");
  AddTyped(app, "--allowed-routes", c->allowed,
           "routes a request may name, for example full,routed")
      ->type_name("ROUTES")
      ->delimiter(',')
      ->transform(routes);
  AddTyped(app, "--min-cost-weight", c->min_cost_weight, "smallest lambda a request may name");
  AddTyped(app, "--max-cost-weight", c->max_cost_weight,
           "largest lambda a request may name and elastic mode goes to");
  AddTyped(app, "--min-eta", c->min_eta, "smallest eta a request may name");
  AddTyped(app, "--max-eta", c->max_eta, "largest eta a request may name");
  AddTyped(app, "--elastic", c->elastic, "whether lambda goes up under load")
      ->type_name("")
      ->transform(on_off);
  AddTyped(app, "--elastic-queue-wait", c->queue_wait_s, "seconds; a longer wait is load");
  AddTyped(app, "--elastic-inter-token", c->inter_token_s,
           "seconds between two tokens; more is load");
  AddTyped(app, "--force-full", c->force_full,
           "kill switch: every token of every request reads everything")
      ->type_name("")
      ->transform(on_off);
}

v1::RoutingPolicy ToWire(const Change& c) {
  v1::RoutingPolicy wire;
  if (c.route) wire.set_default_route(static_cast<v1::Route>(*c.route));
  for (const int route : c.allowed) {
    wire.mutable_allowed_routes()->add_routes(static_cast<v1::Route>(route));
  }
  if (c.cost_weight) wire.set_cost_weight(*c.cost_weight);
  if (c.eta) wire.set_eta(*c.eta);
  if (c.min_cost_weight) wire.set_min_cost_weight(*c.min_cost_weight);
  if (c.max_cost_weight) wire.set_max_cost_weight(*c.max_cost_weight);
  if (c.min_eta) wire.set_min_eta(*c.min_eta);
  if (c.max_eta) wire.set_max_eta(*c.max_eta);
  if (c.elastic) wire.set_elastic(*c.elastic);
  if (c.queue_wait_s) wire.set_elastic_queue_wait_seconds(*c.queue_wait_s);
  if (c.inter_token_s) wire.set_elastic_inter_token_seconds(*c.inter_token_s);
  if (c.force_full) wire.set_force_full(*c.force_full);
  return wire;
}

int Set(int argc, char** argv) {
  Common common;
  Change change;
  CLI::App app(
      "Change what is given, from the next step on, for running requests too; prints the policy "
      "that results.",
      "metattnctl routing set");
  AddCommon(app, &common);
  AddChange(app, &change);
  if (auto code = Parse(app, argc, argv)) return *code;
  const v1::RoutingPolicy wire = ToWire(change);
  if (wire.ByteSizeLong() == 0) {
    return Report(absl::InvalidArgumentError("nothing to change; --help lists what can be"));
  }
  auto policy = Client::Connect(common.server)->SetRoutingPolicy(wire);
  if (!policy.ok()) return Report(policy.status());
  std::cout << (common.json ? ToJson(*policy, true) + "\n" : PolicyText(*policy)) << std::flush;
  return EXIT_SUCCESS;
}

}  // namespace

int CommandRouting(int argc, char** argv) {
  const std::string_view what = argc < 2 ? "" : argv[1];
  if (what == "get") return Get(argc - 1, argv + 1);
  if (what == "set") return Set(argc - 1, argv + 1);
  const bool help = what == "--help" || what == "-h";
  std::fputs("usage: metattnctl routing get|set [FLAGS]; --help behind each lists the flags\n",
             help ? stdout : stderr);
  return help ? EXIT_SUCCESS : 2;
}

}  // namespace metattn
