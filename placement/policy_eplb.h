/* EPLB, DeepSeek's expert-parallel load balancer (github.com/deepseek-ai/EPLB, eplb.py): the published algorithm, in f32 as it
 * runs there, ties to the lower index. */
#ifndef MOE_PLACEMENT_POLICY_EPLB_H
#define MOE_PLACEMENT_POLICY_EPLB_H

#include <stdint.h>

/* weight [experts]; slot [replicas]: the expert in each, gpus * (replicas / gpus). gpus divides replicas, nodes gpus. Hierarchical
 * if nodes divides groups (and groups experts): groups of experts to nodes, copies within a node; else over all gpus
 * at once. A gpu may get an expert twice. */
void moe_eplb(const float *weight, int experts, int replicas, int groups, int nodes, int gpus,
              int32_t *slot);

#endif
