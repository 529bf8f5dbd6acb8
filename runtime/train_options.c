/* Training settings: defaults, checks, the learning-rate schedule. */
#include <math.h>

#include "runtime/train.h"

void moe_train_options_default(MoeTrainOptions *o) {
    *o = (MoeTrainOptions){.data_format = MOE_DATA_AUTO,
                           .eval_fraction = 0.05,
                           .steps = 1000,
                           .lr = 3e-4,
                           .min_lr = -1,
                           .warmup = -1,
                           .beta1 = 0.9,
                           .beta2 = 0.95,
                           .eps = 1e-8,
                           .weight_decay = 0.1,
                           .max_grad_norm = 1.0,
                           .eval_every = 250,
                           .eval_batches = 8,
                           .checkpoint_every = 500,
                           .keep = 3,
                           .resume = MOE_RESUME_AUTO,
                           .trace = true,
                           .log_seconds = 10,
                           .device = {.device = -1, .local = -1}};
    moe_place_options_default(&o->place);
}

/* Written so that NaN fails too. */
static bool within(double v, double lo, double hi) {
    return v >= lo && v <= hi;
}

MoeStatus moe_train_options_check(const MoeTrainOptions *o) {
    const struct {
        bool ok;
        const char *text;
    } rules[] = {
        {o->data_path != NULL, "--data FILE is required: the text to train on"},
        {o->eval_fraction == 0 || within(o->eval_fraction, 1e-9, 0.9),
         "--eval-fraction must be in 0..0.9"},
        {o->steps >= 1, "--steps must be at least 1"},
        {within(o->lr, 0, 1e3), "--lr must be a number in 0..1000"},
        {o->min_lr < 0 || within(o->min_lr, 0, o->lr), "--min-lr must be at most --lr"},
        {o->warmup <= o->steps, "--warmup must be at most --steps"},
        {within(o->beta1, 0, 0.999999999), "--beta1 must be in [0, 1)"},
        {within(o->beta2, 0, 0.999999999), "--beta2 must be in [0, 1)"},
        {within(o->eps, 1e-30, 1), "--eps must be in 1e-30..1"},
        {within(o->weight_decay, 0, 1e3), "--weight-decay must be a number in 0..1000"},
        {within(o->max_grad_norm, -1e30, 1e30), "--max-grad-norm must be a number"},
        {o->eval_every >= 0, "--eval-every must be at least 0"},
        {o->eval_batches >= 0, "--eval-batches must be at least 0"},
        {o->checkpoint_every >= 0, "--checkpoint-every must be at least 0"},
        {o->keep >= 1, "--keep must be at least 1"},
        {within(o->max_seconds, 0, 1e12), "--max-seconds must be a number >= 0"},
        {o->threads >= 0, "--threads must be at least 0"},
        {o->profile_step >= 0, "--profile-step must be at least 0"},
        {o->stop_after_step >= 0, "--stop-after-step must be at least 0"},
        {o->resume != MOE_RESUME_DIR || o->resume_dir, "--resume needs auto, never or a directory"},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!rules[i].ok)
            return moe_error(MOE_E_MISUSE, "%s", rules[i].text);
    return moe_place_options_check(&o->place);
}

double moe_train_lr(const MoeTrainOptions *o, int64_t step) {
    double lowest = o->min_lr < 0 ? o->lr / 10 : o->min_lr;
    int64_t warmup = o->warmup >= 0 ? o->warmup : o->steps / 20 < 200 ? o->steps / 20 : 200;
    if (step <= warmup)
        return o->lr * (double)step / (double)warmup;
    if (step >= o->steps)
        return lowest;
    double t = (double)(step - warmup) / (double)(o->steps - warmup);
    return lowest + 0.5 * (o->lr - lowest) * (1 + cos(3.14159265358979323846 * t));
}
