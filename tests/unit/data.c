/* runtime/data.h: windows, the held-out split, the order of epochs, exact positions. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"
#include "tests/support/status_checks.h"


enum { SEQ = 7 };

/* n tokens as u16, token i = i * 3 % 60000: a window's place shows in its ids. */
static MoeData *open_data(int64_t n, double eval_fraction, uint64_t seed) {
    uint16_t *t = malloc((size_t)n * sizeof *t);
    for (int64_t i = 0; i < n; i++)
        t[i] = (uint16_t)(i * 3 % 60000);
    MoeTokens *tokens;
    MoeData *d;
    OK(moe_tokens_open(moe_test_file("t.u16", t, (size_t)n * sizeof *t), MOE_DATA_U16, "byte",
                       65536, &tokens));
    OK(moe_data_from_tokens(tokens, "t.u16", SEQ, eval_fraction, seed, &d));
    free(t);
    return d;
}

/* Which window a sequence is; checks that ids and labels are one run of the stream. */
static int64_t window_of(const int32_t *ids, const int32_t *labels) {
    ck_assert_int_eq(ids[0] % (3 * SEQ), 0);
    for (int i = 0; i < SEQ; i++) {
        ck_assert_int_eq(ids[i], ids[0] + 3 * i);
        ck_assert_int_eq(labels[i], ids[i] + 3); /* the last: the next window's first token */
    }
    return ids[0] / (3 * SEQ);
}

START_TEST(test_epochs) {
    MoeData *d = open_data(100 * SEQ + 1, 0.1, 5);
    ck_assert_int_eq(moe_data_tokens(d), 100 * SEQ + 1);
    ck_assert_int_eq(moe_data_train_windows(d), 90);
    ck_assert_int_eq(moe_data_eval_windows(d), 10);
    int32_t ids[13 * SEQ], labels[13 * SEQ];
    int64_t order[3][90], moved = 0, same = 0;
    for (int epoch = 0, at = 0; epoch < 3;) { /* 13 does not divide 90: batches cross epochs */
        OK(moe_data_next(d, 13, ids, labels));
        for (int i = 0; i < 13 && epoch < 3; i++) {
            order[epoch][at] = window_of(ids + i * SEQ, labels + i * SEQ);
            if (++at == 90) {
                at = 0;
                epoch++;
            }
        }
    }
    for (int e = 0; e < 3; e++) { /* each window once an epoch, none held out */
        bool seen[100] = {false};
        for (int i = 0; i < 90; i++) {
            ck_assert_int_lt(order[e][i], 100);
            ck_assert(order[e][i] < 45 ||
                      order[e][i] >= 55); /* the held-out block, in the middle */
            ck_assert(!seen[order[e][i]]);
            seen[order[e][i]] = true;
            moved += order[e][i] != i;
            same += order[e][i] == order[0][i];
        }
    }
    ck_assert_int_gt(moved, 3 * 80); /* shuffled ... */
    ck_assert_int_lt(same, 90 + 20); /* ... and anew each epoch */
    moe_data_close(d);
}
END_TEST

START_TEST(test_eval_split) {
    MoeData *d = open_data(41 * SEQ + 1, 0.2, 1);
    int32_t ids[20 * SEQ], labels[20 * SEQ];
    ck_assert_int_eq(moe_data_eval_windows(d), 8);
    ck_assert_int_eq(moe_data_eval(d, 0, 20, ids, labels), 8);
    for (int i = 0; i < 8; i++)
        ck_assert_int_eq(window_of(ids + i * SEQ, labels + i * SEQ), 16 + i);
    ck_assert_int_eq(moe_data_eval(d, 6, 20, ids, labels), 2);
    ck_assert_int_eq(window_of(ids, labels), 22);
    ck_assert_int_eq(moe_data_eval(d, 8, 20, ids, labels), 0);
    MoeDataPosition p = moe_data_position(d);
    ck_assert(p.epoch == 0 && p.index == 0);
    moe_data_close(d);
    d = open_data(3 * SEQ, 0.0001, 1); /* two whole windows and a rest: one held out at least */
    ck_assert_int_eq(moe_data_train_windows(d), 1);
    ck_assert_int_eq(moe_data_eval_windows(d), 1);
    moe_data_close(d);
    d = open_data(3 * SEQ, 0, 1);
    ck_assert_int_eq(moe_data_train_windows(d), 2);
    ck_assert_int_eq(moe_data_eval_windows(d), 0);
    moe_data_close(d);
}
END_TEST

/* Held-out blocks: of at most 16 windows, one in each equal part of the stream, apart from what is trained on. */
START_TEST(test_eval_blocks) {
    enum { WINDOWS = 400, HELD = 40 };
    MoeData *d = open_data(WINDOWS * SEQ + 1, 0.1, 1);
    int32_t ids[SEQ], labels[SEQ];
    int held[WINDOWS] = {0}, part[3] = {0}, blocks = 0;
    ck_assert_int_eq(moe_data_eval_windows(d), HELD);
    for (int64_t i = 0, last = -2; i < HELD; i++) {
        ck_assert_int_eq(moe_data_eval(d, i, 1, ids, labels), 1);
        int64_t w = window_of(ids, labels);
        ck_assert_int_gt(w, last);
        blocks += w != last + 1;
        last = w;
        held[w]++;
        part[w * 3 / WINDOWS]++;
    }
    ck_assert_int_eq(blocks, 3);
    for (int b = 0; b < 3; b++)
        ck_assert(part[b] == 13 || part[b] == 14);
    for (int i = 0; i < WINDOWS - HELD; i++) {
        OK(moe_data_next(d, 1, ids, labels));
        ck_assert_int_eq(held[window_of(ids, labels)]++, 0);
    }
    moe_data_close(d);
}
END_TEST

/* Stopped anywhere and taken up again: the same sequences. */
START_TEST(test_resume) {
    enum { B = 4, STEPS = 60 };
    int32_t ids[STEPS][B * SEQ], labels[B * SEQ], again[B * SEQ];
    MoeDataPosition at[STEPS];
    MoeData *d = open_data(40 * SEQ + 3, 0.05, 9);
    for (int s = 0; s < STEPS; s++) {
        at[s] = moe_data_position(d);
        OK(moe_data_next(d, B, ids[s], labels));
    }
    ck_assert_int_gt(at[STEPS - 1].epoch, 3);
    for (int s = 0; s < STEPS; s += 7) {
        MoeData *e = open_data(40 * SEQ + 3, 0.05, 9);
        OK(moe_data_seek(e, at[s]));
        for (int k = s; k < STEPS && k < s + 15; k++) {
            OK(moe_data_next(e, B, again, labels));
            ck_assert_mem_eq(again, ids[k], sizeof again);
        }
        moe_data_close(e);
    }
    MoeData *other = open_data(40 * SEQ + 3, 0.05, 10); /* another seed, another order */
    OK(moe_data_next(other, B, again, labels));
    ck_assert(memcmp(again, ids[0], sizeof again));
    moe_data_set_seed(other, 9);
    OK(moe_data_seek(other, (MoeDataPosition){0, 0}));
    OK(moe_data_next(other, B, again, labels));
    ck_assert_mem_eq(again, ids[0], sizeof again);
    moe_data_close(other);
    static const MoeDataPosition bad[] = {{-1, 0}, {0, -1}, {0, 38}, {0, INT64_MAX}};
    for (int i = 0; i < 4; i++) {
        const char *wrong =
            moe_test_error(moe_data_seek(d, bad[i]), MOE_E_CORRUPT, "38 training sequences", NULL);
        ck_assert_msg(!wrong, "%s", wrong);
    }
    moe_data_close(d);
}
END_TEST

START_TEST(test_fingerprint) {
    MoeData *a = open_data(900, 0.05, 1), *b = open_data(900, 0.05, 2),
            *c = open_data(901, 0.05, 1), *e = open_data(900, 0.5, 1);
    ck_assert_str_eq(moe_data_fingerprint(a), moe_data_fingerprint(b));
    ck_assert_str_ne(moe_data_fingerprint(a), moe_data_fingerprint(c));
    ck_assert_str_ne(moe_data_fingerprint(a), moe_data_fingerprint(e));
    moe_data_close(a);
    moe_data_close(b);
    moe_data_close(c);
    moe_data_close(e);
}
END_TEST

START_TEST(test_too_short) {
    char text[64];
    memset(text, 'x', sizeof text);
    static const struct {
        size_t n;
        double fraction;
        const char *needs;
    } cases[] = {{2 * SEQ, 0.05, "at least 15"}, {SEQ, 0, "at least 8"}, {1, 0.05, "1 tokens"}};
    for (size_t i = 0; i < 3; i++) {
        MoeTokens *tokens;
        MoeData *d;
        const char *path = moe_test_file("short.txt", text, cases[i].n);
        OK(moe_tokens_open(path, MOE_DATA_TEXT, "byte", 256, &tokens));
        const char *wrong =
            moe_test_error(moe_data_from_tokens(tokens, path, SEQ, cases[i].fraction, 0, &d),
                           MOE_E_INPUT, "short.txt", cases[i].needs, NULL);
        ck_assert_msg(!wrong, "%s", wrong);
        OK(moe_tokens_open(moe_test_file("enough.txt", text, 15), MOE_DATA_TEXT, "byte", 256,
                           &tokens));
        OK(moe_data_from_tokens(tokens, "enough.txt", SEQ, 0.05, 0, &d));
        moe_data_close(d);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("data");
    TCase *t = tcase_create("data");
    tcase_add_test(t, test_epochs);
    tcase_add_test(t, test_eval_split);
    tcase_add_test(t, test_eval_blocks);
    tcase_add_test(t, test_resume);
    tcase_add_test(t, test_fingerprint);
    tcase_add_test(t, test_too_short);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
