/* Between policy_moec.c (samples, prices, what is taken) and policy_moec_changes.c (where to look for changes). */
#ifndef MOE_PLACEMENT_POLICY_MOEC_H
#define MOE_PLACEMENT_POLICY_MOEC_H

#include "base/split_flow.h"
#include "placement/policy.h"

enum {
    MOEC_SAMPLES = 4, /* loads that a map is judged by, at most */
    MOEC_EXPERTS = 6, /* that are tried for each target, of those confined to tight ranks */
    MOEC_TARGETS = 7, /* ranks that are tried */
    MOEC_CHANGES = MOEC_TARGETS * (2 * MOEC_EXPERTS + 1)
};

/* Slot `at` gets expert `gets`, and if `other` >= 0 that slot gets what was in `at`. */
typedef struct {
    int at, gets, other;
} MoecChange;

typedef struct {
    const MoePolicySetup *s;
    MoeArena *arena;
    const MoePlaceMap *now;
    MoePlaceMap map, best; /* as changed so far; the best on the way */
    bool copies;           /* whether new ones are wanted */
    int32_t *n_copies;     /* [experts] in map */
    MoeFlow flow[MOEC_SAMPLES];
    double mean[MOEC_SAMPLES]; /* rows of a rank */
    int n;                     /* samples */
    int work;                  /* left of this decision */
    double price_arrival, price_move;
    double price_between; /* imbalance that a copy from another node costs at each step, on the busiest link; 0 in one node */
    int32_t *between;     /* [ranks] copies that a rank gets from other nodes; then [ranks] that it sends */
    int32_t *was, *home;  /* [experts] rank of the primary now, and as changes leave it */
    int32_t *node;        /* [ranks] */
    int between_now;      /* copies on the busiest link between nodes, of the map of now */
    int32_t *ahead; /* [experts] the load that the trend leads to */
    /* Of large layers, where a search takes time: one that found nothing is not repeated before a step, or a worse imbalance. */
    int64_t *rest_until; /* [layers] */
    double *rest_at;     /* [layers] */
    int64_t *changed_at; /* [layers] step of the last change, or of the first question; -1 */
    /* Of the search. */
    int8_t *tight;   /* [ranks] */
    int64_t *load;   /* [ranks] as far as it can be told without a new flow */
    int64_t *amount; /* [ranks*slots] likewise */
    /* Of relieving many ranks: those that have too much, unless they are beyond help; those below the mean; those of them that may take copies. */
    int32_t *givers, *low, *takers; /* [ranks] */
    int n_givers, n_low, n_takers, least;
    int64_t least_load; /* rows of rank `least`, which has the fewest */
} Moec;

/* Makes the change in map and n_copies. */
void moec_apply(Moec *m, const MoecChange *c);
/* Changes that may relieve sample k's tight ranks; writes up to MOEC_CHANGES, returns how many. */
int moec_candidates(Moec *m, int k, MoecChange *out);
/* Relieves all ranks that have more than the mean by the part `above`, by estimate: for many ranks, where one change a time is too
 * slow. Returns the number of changes made in map. */
int moec_relieve_all(Moec *m, int k, double above);

#endif
