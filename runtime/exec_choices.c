/* exec.h: choices by measurement (choices.h): taken from a checkpoint, and made before the first run. */
#include "runtime/exec_internal.h"

MoeChoices *moe_exec_choices(MoeExec *x) {
    return &x->choices;
}

MoeStatus moe_exec_take_choices(MoeExec *x, const json_t *choices, const char *where) {
    x->decided = false;
    return moe_choices_take(&x->choices, choices, where);
}

MoeStatus moe_exec_decide(MoeExec *x) {
    if (x->decided)
        return NULL;
    if (x->device->ops->decide)
        MOE_TRY(x->device->ops->decide(x->device, x));
    x->decided = true;
    return NULL;
}
