/* Streams, events and graphs: what stream.c, copy.c and graph.c share. */
#ifndef MOE_TESTS_SIM_STREAM_INTERNAL_H
#define MOE_TESTS_SIM_STREAM_INTERNAL_H

#include "tests/sim/driver.h"

typedef struct {
    MoeSimOp *ops;
    size_t n, cap;
} Ops;

struct CUgraph_st {
    Ops ops;
    CUstream origin;
    int mode;
    bool broken;
    bool ended;
};

struct CUgraphExec_st {
    Ops ops;
};

struct CUstream_st {
    CUcontext context;
    unsigned flags;
    Ops queue;
    size_t next;     /* of queue: runs next */
    uint64_t issued; /* ops ever issued; those that ran: issued - (queue.n - next) */
    CUgraph graph;   /* captured into */
    size_t captured; /* ops of this stream in that graph */
    bool joined;     /* the origin waits for its last op */
    CUstream after;  /* in the list of all streams */
    bool destroyed;  /* off the list, but kept: events may name it */
};

struct CUevent_st {
    CUcontext context;
    unsigned flags;
    CUstream stream; /* recorded in, at this number; NULL: never */
    uint64_t number;
    double time;   /* seconds, once it ran */
    CUgraph graph; /* recorded while captured: into this graph, after so many of the stream's ops */
    size_t captured;
};

extern CUstream moe_sim_streams; /* all, but those that were destroyed */

void moe_sim_ops_add(Ops *list, const MoeSimOp *op);
void moe_sim_op_free(MoeSimOp *op);
/* What was asked of s, up to its op of that number. */
CUresult moe_sim_run_until(CUstream s, uint64_t number);
CUresult moe_sim_step(CUstream s, bool *out_moved);
/* value.c: true once all of a batch is over. */
bool moe_sim_values_go_on(MoeSimOp *op, bool *out_moved);
CUresult moe_sim_check_stream(CUstream s);

#endif
