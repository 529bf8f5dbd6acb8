/* placement/load.h: traces in every format, good and bad; other numbers of sources. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/rng.h"
#include "base/str.h"
#include "placement/load.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

static MoeArena *arena;
static MoeLoad load;

static void setup(void) {
    arena = moe_arena_create();
    load = (MoeLoad){0};
}
static void teardown(void) {
    moe_arena_destroy(arena);
}

static MoeStatus read_text(const char *text) {
    return moe_load_read(moe_test_file("trace", text, strlen(text)), arena, &load);
}

static void check_sizes(int64_t first, int steps, int layers, int sources, int experts) {
    ck_assert_int_eq(load.first_step, first);
    ck_assert_int_eq(load.steps, steps);
    ck_assert_int_eq(load.layers, layers);
    ck_assert_int_eq(load.sources, sources);
    ck_assert_int_eq(load.experts, experts);
}

static void check_counts(int step, int layer, const int32_t *want) {
    const int32_t *c = moe_load_at(&load, step, layer);
    for (int i = 0; i < load.sources * load.experts; i++)
        ck_assert_msg(c[i] == want[i], "step %d layer %d: count %d is %d, expected %d", step, layer,
                      i, c[i], want[i]);
}

#define HEAD "step,layer,rank,e0,e1,e2\n"

START_TEST(test_csv) {
    OK(read_text(HEAD "7,1,0,1,2,3\n7,1,1,4,5,6\n7,3,0,7,8,9\n7,3,1,0,0,2147483\n"));
    check_sizes(7, 1, 2, 2, 3);
    ck_assert_int_eq(load.layer[0], 1);
    ck_assert_int_eq(load.layer[1], 3);
    check_counts(0, 0, (int32_t[]){1, 2, 3, 4, 5, 6});
    check_counts(0, 1, (int32_t[]){7, 8, 9, 0, 0, 2147483});
    /* any order, CRLF, blanks, blank lines, no newline at the end */
    OK(read_text("step,layer,rank,e0,e1,e2\r\n1,0,1, 4 "
                 ",5,6\r\n\n0,0,1,10,11,12\r\n1,0,0,1,2,3\n0,0,0,7,8,9"));
    check_sizes(0, 2, 1, 2, 3);
    check_counts(0, 0, (int32_t[]){7, 8, 9, 10, 11, 12});
    check_counts(1, 0, (int32_t[]){1, 2, 3, 4, 5, 6});
}
END_TEST

START_TEST(test_csv_bad) {
    FAILS(read_text(""), MOE_E_INPUT, "trace", "empty");
    FAILS(read_text("\n \n"), MOE_E_INPUT, "trace", "empty");
    FAILS(read_text("hello\n"), MOE_E_INPUT, "trace:1", "not a load trace");
    FAILS(read_text("PK\x03\x04"), MOE_E_INPUT, "not a load trace");
    FAILS(read_text("step,rank,layer,e0\n"), MOE_E_INPUT, "trace:1", "step,layer,rank");
    FAILS(read_text("step,layer,rank\n0,0,0\n"), MOE_E_INPUT, "trace:1", "no column for an expert");
    FAILS(read_text("step,layer,rank,e0,seconds\n"), MOE_E_INPUT, "trace:1", "column 5", "seconds",
          "e1");
    FAILS(read_text("step,layer,rank,e0,e2\n"), MOE_E_INPUT, "trace:1", "column 5", "e2", "e1");
    FAILS(read_text("step,layer,rank,e0,\n"), MOE_E_INPUT, "trace:1", "column 5", "e1");
    FAILS(read_text(HEAD), MOE_E_INPUT, "trace", "no rows");
    FAILS(read_text(HEAD "0,0,0,1,2\n"), MOE_E_INPUT, "trace:2", "2 counts, expected 3");
    FAILS(read_text(HEAD "0,0,0,1,2,3\n1,0,0,1,2,3,4\n"), MOE_E_INPUT, "trace:3",
          "4 counts, expected 3");
    FAILS(read_text(HEAD "0,0\n"), MOE_E_INPUT, "trace:2", "ends after its layer");
    FAILS(read_text(HEAD "0,0,0,1,-2,3\n"), MOE_E_INPUT, "trace:2", "e1 is -2", "negative");
    FAILS(read_text(HEAD "-1,0,0,1,2,3\n"), MOE_E_INPUT, "trace:2", "step is -1", "negative");
    FAILS(read_text(HEAD "0,0,0,1,2147483648,3\n"), MOE_E_INPUT, "trace:2", "e1 is 2147483648",
          "at most 2147483647");
    FAILS(read_text(HEAD "0,0,0,1,99999999999999999999999,3\n"), MOE_E_INPUT, "trace:2",
          "e1 is 999999", "at most");
    FAILS(read_text(HEAD "0,0,0,1,2.5,3\n"), MOE_E_INPUT, "trace:2", "e1 is \"2.5\"",
          "whole number");
    FAILS(read_text(HEAD "0,0,0,1,,3\n"), MOE_E_INPUT, "trace:2", "e1 is empty");
    FAILS(read_text(HEAD "0,0,70000,1,2,3\n"), MOE_E_INPUT, "trace:2", "rank is 70000", "65535");
    FAILS(read_text(HEAD "0,0,0,2147483647,1,0\n"), MOE_E_INPUT, "step 0, layer 0", "2147483648",
          "at most");
    /* what is not there */
    FAILS(read_text(HEAD "0,0,0,1,2,3\n2,0,0,1,2,3\n"), MOE_E_INPUT, "trace:3",
          "step 1, layer 0, rank 0 is missing");
    FAILS(read_text(HEAD "0,0,0,1,2,3\n900000000000,0,0,1,2,3\n"), MOE_E_INPUT, "trace:3",
          "step 1,");
    FAILS(read_text(HEAD "0,0,0,1,2,3\n0,0,1,1,2,3\n1,0,1,1,2,3\n"), MOE_E_INPUT, "trace:4",
          "step 1, layer 0, rank 0 is missing");
    FAILS(read_text(HEAD "0,0,0,1,2,3\n0,0,1,1,2,3\n1,0,0,1,2,3\n"), MOE_E_INPUT, "trace:4",
          "step 1, layer 0, rank 1 is missing", "the last");
    FAILS(read_text(HEAD "0,0,0,1,2,3\n0,1,0,1,2,3\n1,0,0,1,2,3\n2,0,0,1,2,3\n2,1,0,1,2,3\n"),
          MOE_E_INPUT, "trace:5", "step 1, layer 1, rank 0 is missing");
    FAILS(read_text(HEAD "0,0,0,1,2,3\n0,0,0,1,2,3\n"), MOE_E_INPUT, "trace:3", "a second time",
          "line 2");
    FAILS(read_text(HEAD "0,0,0,1,2,3\n0,0,2,1,2,3\n"), MOE_E_INPUT, "rank 2 and none of rank 1");
    FAILS(read_text(HEAD "0,0,0,1,2,3\n0,0,1,1,2,3\n0,1,0,1,2,3\n"), MOE_E_INPUT, "trace:4",
          "layer 1 has rows of 1 ranks, layer 0 of 2");
    FAILS(moe_load_read(moe_test_path("none"), arena, &load), MOE_E_IO, "none");
}
END_TEST

START_TEST(test_matrix) {
    const int32_t want[] = {90, 132, 40}, below[] = {20, 107, 104};
    const char *texts[] = {"90,132,40\n20,107,104\n", "# load\n 90 132 40 \n\n20\t107 104",
                           "[[ 90, 132,\n  40],\n [20, 107, 104]]\n", "[[90,132,40],[20,107,104]]",
                           "90.2 131.6 4e1\n20 107 104\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        OK(read_text(texts[i]));
        check_sizes(0, 1, 2, 1, 3);
        check_counts(0, 0, want);
        check_counts(0, 1, below);
    }
    FAILS(read_text("1 2 3\n1 2\n"), MOE_E_INPUT, "trace:2", "2 experts, the first layer has 3");
    FAILS(read_text("[[1, 2],\n [1, 2, 3]]\n"), MOE_E_INPUT, "trace:2",
          "3 experts, the first layer has 2");
    FAILS(read_text("1 2\n3 -4\n"), MOE_E_INPUT, "trace:2", "-4", "negative");
    FAILS(read_text("1 2\n3 1e300\n"), MOE_E_INPUT, "trace:2", "1e300", "at most");
    FAILS(read_text("1 2\n3 nan\n"), MOE_E_INPUT, "trace:2", "nan");
    FAILS(read_text("1 2\nthree 4\n"), MOE_E_INPUT, "trace:2", "three");
    FAILS(read_text("0.25 0.75\n"), MOE_E_INPUT, "0.75", "scale");
    FAILS(read_text("# nothing\n"), MOE_E_INPUT, "empty");
}
END_TEST

static void put_record(MoeStr *s, int step, int layer, int rank, const char *more,
                       const char *choices, int n) {
    moe_str_printf(s,
                   "{\"step\": %d, \"stage\": \"pre_dispatch\", \"block\": \"%s\", \"layer\": %d, "
                   "\"rank\": %d, \"num_tokens\": %d, \"topk\": 2, "
                   "%s\"top_indices\": %s, \"logit_offset\": 0}\n",
                   step, *more ? "mtp" : "decoder", layer, rank, n, more, choices);
}

START_TEST(test_router) {
    MoeStr s = {0};
    /* rank 5 first, two micro-batches of it; rank 4; a layer of multi-token prediction */
    for (int rank = 5; rank >= 4; rank--) {
        put_record(&s, 0, 3, rank, "", "[[0, 1], [1, 2]]", 2);
        if (rank == 5)
            put_record(&s, 0, 3, rank, "", "[[3,2]]", 1);
        put_record(&s, 0, 0, rank, "\"mtp_idx\": 0, ", "[]", 0);
    }
    OK(read_text(moe_str_c(&s)));
    check_sizes(0, 1, 2, 2, 4);
    check_counts(0, 0, (int32_t[]){1, 2, 1, 0, 1, 2, 2, 1});
    check_counts(0, 1, (int32_t[]){0, 0, 0, 0, 0, 0, 0, 0});
    ck_assert_int_eq(load.layer[0], 3);
    ck_assert_int_eq(load.layer[1], 4);
    OK(moe_load_widen(&load, 6, arena));
    check_sizes(0, 1, 2, 2, 6);
    check_counts(0, 0, (int32_t[]){1, 2, 1, 0, 0, 0, 1, 2, 2, 1, 0, 0});
    FAILS(moe_load_widen(&load, 5, arena), MOE_E_INPUT, "6 experts", "5");
    /* a directory of files, a rank each */
    moe_str_clear(&s);
    const char *dir = moe_test_path("routed");
    ck_assert(mkdir(dir, 0700) == 0);
    for (int rank = 0; rank < 12; rank++) {
        char name[64], choices[32];
        snprintf(name, sizeof name, "routed/router_trace_rank%d.jsonl", rank);
        snprintf(choices, sizeof choices, "[[%d, 12]]", rank);
        moe_str_clear(&s);
        for (int step = 0; step < 3; step++)
            put_record(&s, step, 0, rank, "", choices, 1);
        moe_test_file(name, moe_str_c(&s), s.len);
    }
    moe_test_file("routed/hidden_states_rank0.bin", "x", 1);
    OK(moe_load_read(moe_test_path("routed"), arena, &load));
    check_sizes(0, 3, 1, 12, 13);
    for (int r = 0; r < 12; r++)
        for (int e = 0; e < 13; e++)
            ck_assert_int_eq(moe_load_at(&load, 2, 0)[r * 13 + e], e == r || e == 12);
    moe_str_free(&s);
}
END_TEST

START_TEST(test_router_bad) {
#define REC(keys, list)                                                                            \
    "{\"step\": 0, \"layer\": 0, \"rank\": 0, " keys "\"top_indices\": " list "}\n"
    FAILS(read_text("{\"step\": 0}\n"), MOE_E_INPUT, "trace:1", "top_indices");
    FAILS(read_text(REC("", "[[1, 2]]") "{\"step\": 1, \"top_indices\": [[1, 2]]}\n"), MOE_E_INPUT,
          "trace:2", "layer");
    FAILS(read_text(REC("", "[[1, -1]]")), MOE_E_INPUT, "trace:1", "negative");
    FAILS(read_text(REC("", "[[1, 99999999]]")), MOE_E_INPUT, "trace:1", "too large");
    FAILS(read_text(REC("", "[1, 2]")), MOE_E_INPUT, "trace:1", "list of lists");
    FAILS(read_text(REC("", "[[[1]]]")), MOE_E_INPUT, "trace:1", "list of lists");
    FAILS(read_text(REC("", "[[1.5]]")), MOE_E_INPUT, "trace:1", "list of lists");
    FAILS(read_text(REC("", "\"x\"")), MOE_E_INPUT, "trace:1", "list of lists");
    FAILS(read_text("{\"step\": 0, \"top_indices\": [[1, 2]"), MOE_E_INPUT, "trace:1",
          "ends within");
    FAILS(read_text("{\"step\": 0, \"top_indices\": "), MOE_E_INPUT, "trace:1", "ends within");
    FAILS(read_text(REC("\"num_tokens\": 2, ", "[[1, 2]]")), MOE_E_INPUT, "trace:1", "1 tokens",
          "num_tokens is 2");
    FAILS(read_text(REC("\"topk\": 3, ", "[[1, 2]]")), MOE_E_INPUT, "trace:1", "2 choices",
          "topk 3");
    FAILS(read_text(REC("\"rank\": 0, ", "[[1, 2]]")), MOE_E_INPUT, "trace:1", "JSON");
    FAILS(read_text(REC("", "[]")), MOE_E_INPUT, "no token");
    FAILS(read_text("{\"step\": 0, \"layer\": 0, \"rank\": 70000, \"top_indices\": [[1]]}"),
          MOE_E_INPUT, "trace:1", "out of range");
    FAILS(moe_load_read(moe_test_dir(), arena, &load), MOE_E_INPUT, "trace.csv",
          "router_trace_rank");
}
END_TEST

START_TEST(test_run_directory) {
    const char *dir = moe_test_path("run"),
               *text = HEAD "1,0,0,1,2,3\n1,0,1,4,5,6\n2,0,0,7,8,9\n2,0,1,1,1,1\n";
    ck_assert(mkdir(dir, 0700) == 0);
    /* cut anywhere in step 2: step 1 is read; the same file by its own path is an error */
    size_t n = strlen(text), whole = (size_t)(strstr(text, "2,0,0,7") - text);
    for (size_t cut = whole; cut < n; cut++) {
        moe_test_file("run/trace.csv", text, cut);
        OK(moe_load_read(moe_test_path("run"), arena, &load));
        check_sizes(1, 1, 1, 2, 3);
        if (cut > whole && cut + 1 < n)
            FAILS(moe_load_read(moe_test_path("run/trace.csv"), arena, &load), MOE_E_INPUT,
                  "trace.csv:");
    }
    moe_test_file("run/trace.csv", text, n);
    OK(moe_load_read(moe_test_path("run"), arena, &load));
    check_sizes(1, 2, 1, 2, 3);
}
END_TEST

START_TEST(test_write) {
    OK(read_text(HEAD "7,1,0,1,2,3\n7,1,1,4,5,6\n7,3,0,7,8,9\n7,3,1,0,0,2147483\n"));
    OK(moe_load_write(moe_test_path("copy.csv"), &load));
    char *text;
    size_t n;
    OK(moe_file_read(moe_test_path("copy.csv"), 1 << 20, &text, &n));
    ck_assert_str_eq(text, HEAD "7,1,0,1,2,3\n7,1,1,4,5,6\n7,3,0,7,8,9\n7,3,1,0,0,2147483\n");
    free(text);
}
END_TEST

/* Sums over sources stay; consecutive ones are merged; parts of one differ by at most one row an expert, and in total. */
START_TEST(test_sources) {
    enum { S = 6, E = 5 };
    MoeStr s = {0};
    moe_str_append(&s, "step,layer,rank,e0,e1,e2,e3,e4\n");
    for (int r = 0; r < S; r++) {
        moe_str_printf(&s, "0,0,%d", r);
        for (int e = 0; e < E; e++)
            moe_str_printf(&s, ",%d", (int)moe_rng_below(1, (uint64_t)r, (uint64_t)e, 100));
        moe_str_putc(&s, '\n');
    }
    OK(read_text(moe_str_c(&s)));
    moe_str_free(&s);
    const int32_t *in = moe_load_at(&load, 0, 0);
    for (int n = 1; n <= 24; n++) {
        MoeLoad out;
        bool divided;
        OK(moe_load_sources(&load, n, arena, &out, &divided));
        ck_assert_int_eq(divided, S % n != 0);
        ck_assert_int_eq(out.sources, n);
        const int32_t *c = moe_load_at(&out, 0, 0);
        for (int e = 0; e < E; e++) {
            int64_t a = 0, b = 0;
            for (int r = 0; r < S; r++)
                a += in[r * E + e];
            for (int r = 0; r < n; r++)
                b += c[r * E + e];
            ck_assert_int_eq(a, b);
        }
        for (int r = 0; r < n && S % n == 0; r++)
            for (int e = 0; e < E; e++) {
                int32_t want = 0;
                for (int k = 0; k < S / n; k++)
                    want += in[(r * (S / n) + k) * E + e];
                ck_assert_int_eq(c[r * E + e], want);
            }
        for (int r = 0; r < n && n % S == 0; r++) {
            int parts = n / S, first = r / parts * parts;
            int64_t total = 0, total_first = 0;
            for (int e = 0; e < E; e++) {
                ck_assert_int_le(abs(c[r * E + e] - c[first * E + e]), 1);
                total += c[r * E + e];
                total_first += c[first * E + e];
            }
            ck_assert_int_le(llabs(total - total_first), 1);
        }
    }
    MoeLoad out;
    bool divided;
    FAILS(moe_load_sources(&load, 0, arena, &out, &divided), MOE_E_MISUSE, "0 sources");
}
END_TEST

int main(void) {
    Suite *s = suite_create("load");
    TCase *t = tcase_create("all");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, test_csv);
    tcase_add_test(t, test_csv_bad);
    tcase_add_test(t, test_matrix);
    tcase_add_test(t, test_router);
    tcase_add_test(t, test_router_bad);
    tcase_add_test(t, test_run_directory);
    tcase_add_test(t, test_write);
    tcase_add_test(t, test_sources);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
