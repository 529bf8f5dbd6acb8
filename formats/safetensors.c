/* A safetensors model: one file, or the shards that an index names. Tensors are listed shard by
 * shard in file order and looked up through a hash table (models of 90,000 tensors exist), seeded
 * so that a file cannot be made to collide. */
#include "formats/safetensors.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "base/assert.h"
#include "base/json.h"
#include "base/log.h"
#include "formats/st_dtype.h"
#include "formats/st_shard.h"

struct MoeSafetensors {
    MoeArena *arena;
    MoeStShard *shards;
    size_t n_shards, cap_shards;
    const MoeStTensor **tensors; /* (n) */
    size_t n, cap;
    uint32_t *slots; /* (n_slots), a power of two: index + 1 of a tensor, 0 = empty */
    size_t n_slots;
    uint64_t seed;
};

static size_t slot_of(const MoeSafetensors *s, const char *name) {
    size_t i = (size_t)XXH3_64bits_withSeed(name, strlen(name), s->seed) & (s->n_slots - 1);
    while (s->slots[i] && strcmp(s->tensors[s->slots[i] - 1]->name, name) != 0)
        i = (i + 1) & (s->n_slots - 1);
    return i;
}

static void build_table(MoeSafetensors *s) {
    if (getrandom(&s->seed, sizeof s->seed, GRND_NONBLOCK) != (ssize_t)sizeof s->seed)
        s->seed = (uint64_t)(uintptr_t)s; /* early boot: the address is random enough */
    s->n_slots = 16;
    while (s->n_slots < s->n * 2)
        s->n_slots *= 2;
    s->slots = MOE_NEW_N(s->arena, uint32_t, s->n_slots);
    for (size_t i = 0; i < s->n;
         i++) /* names are distinct: JSON keys of one file, or of the index */
        s->slots[slot_of(s, s->tensors[i]->name)] = (uint32_t)i + 1;
}

static MoeStatus add_shard(MoeSafetensors *s, const char *path) {
    MoeStShard shard;
    MOE_TRY(moe_st_shard_open(s->arena, path, &shard));
    MOE_PUSH(s->arena, s->shards, s->n_shards, s->cap_shards, shard);
    return NULL;
}

/* All tensors of the first shard. */
static void take_all(MoeSafetensors *s) {
    for (size_t i = 0; i < s->shards[0].n; i++)
        MOE_PUSH(s->arena, s->tensors, s->n, s->cap, &s->shards[0].tensors[i]);
}

static MoeStatus open_single(MoeSafetensors *s, const char *path) {
    MOE_TRY(add_shard(s, path));
    take_all(s);
    return NULL;
}

static bool good_file_name(const char *name) {
    size_t n = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return n > 0 && !name[n] && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* Takes the tensors of a shard that the index maps to it; the others are counted in *ignored.
 * `wanted`: tensor -> file; those found are counted in *found. */
static void take_mapped(MoeSafetensors *s, const MoeStShard *shard, const char *file,
                        const json_t *wanted, size_t *found, size_t *ignored) {
    for (size_t i = 0; i < shard->n; i++) {
        const char *mapped = json_string_value(json_object_get(wanted, shard->tensors[i].name));
        if (mapped && !strcmp(mapped, file)) {
            MOE_PUSH(s->arena, s->tensors, s->n, s->cap, &shard->tensors[i]);
            ++*found;
        } else {
            ++*ignored;
        }
    }
}

/* Some tensor of the index is not where it says: names the first. */
static MoeStatus missing_tensor(MoeSafetensors *s, const char *path, json_t *map) {
    build_table(s);
    const char *name;
    json_t *file;
    json_object_foreach(map, name, file) {
        if (!moe_st_find(s, name))
            return moe_error(MOE_E_INPUT,
                             "%s: tensor \"%.200s\" should be in %s, which does not have it", path,
                             name, json_string_value(file));
    }
    MOE_ASSERT(false, "%s: no tensor is missing", path);
    return NULL;
}

static MoeStatus open_mapped(MoeSafetensors *s, const char *path, json_t *map, json_t *files) {
    const char *name;
    json_t *file;
    size_t found = 0, ignored = 0;
    json_object_foreach(map, name, file) {
        const char *f = json_string_value(file);
        if (!f || !good_file_name(f))
            return moe_error(MOE_E_INPUT,
                             "%s: \"weight_map\": \"%.200s\" must map to a file name of letters, "
                             "digits, '.', '_' "
                             "and '-' in the same directory",
                             path, name);
        if (!json_object_get(files, f))
            json_object_set_new(files, f, json_null());
    }
    const char *slash = strrchr(path, '/');
    int dir_n = slash ? (int)(slash - path) + 1 : 0;
    json_object_foreach(files, name, file) {
        MOE_TRY(add_shard(s, moe_arena_printf(s->arena, "%.*s%s", dir_n, path, name)));
        take_mapped(s, &s->shards[s->n_shards - 1], name, map, &found, &ignored);
        if (s->n > MOE_ST_MAX_TENSORS)
            return moe_error(MOE_E_INPUT, "%s: more than %zu tensors", path, MOE_ST_MAX_TENSORS);
    }
    if (found != json_object_size(map))
        return missing_tensor(s, path, map);
    if (ignored)
        moe_warn("%s: %zu tensors of the shards are not in the index; they are ignored", path,
                 ignored);
    return NULL;
}

static MoeStatus open_index(MoeSafetensors *s, const char *path) {
    json_t *index = NULL, *files = NULL, *map = NULL;
    MoeStatus st;
    MOE_TRY(moe_json_load_file(path, MOE_ST_MAX_HEADER, &index));
    MOE_TRY_GOTO(st, moe_json_object(index, path, "weight_map", true, &map), done);
    if (json_object_size(map) == 0) {
        st = moe_error(MOE_E_INPUT, "%s: \"weight_map\" is empty", path);
        goto done;
    }
    files = json_object(); /* file name -> null, in order of first use */
    MOE_ASSERT(files, "out of memory for the shards of %s", path);
    st = open_mapped(s, path, map, files);
done:
    json_decref(files);
    json_decref(index);
    return st;
}

static bool has_suffix(const char *s, const char *suffix) {
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && !strcmp(s + n - m, suffix);
}

static MoeStatus open_directory(MoeSafetensors *s, const char *path) {
    char *single = moe_path_join(path, "model.safetensors");
    char *index = moe_path_join(path, "model.safetensors.index.json");
    MoeStatus st;
    if (moe_path_exists(single))
        st = open_single(s, single);
    else if (moe_path_exists(index))
        st = open_index(s, index);
    else
        st = moe_error(
            MOE_E_INPUT,
            "%s: the directory has neither model.safetensors nor model.safetensors.index.json",
            path);
    free(single);
    free(index);
    return st;
}

MoeStatus moe_st_open(const char *path, MoeSafetensors **out) {
    MoeArena *arena = moe_arena_create();
    MoeSafetensors *s = MOE_NEW(arena, MoeSafetensors);
    s->arena = arena;
    MoeStatus st;
    if (moe_path_is_dir(path))
        st = open_directory(s, path);
    else if (has_suffix(path, ".json"))
        st = open_index(s, path);
    else
        st = open_single(s, path);
    if (st) {
        moe_st_close(s);
        return st;
    }
    build_table(s);
    *out = s;
    return NULL;
}

MoeStatus moe_st_open_file(MoeBlockFile *f, MoeSafetensors **out) {
    MoeArena *arena = moe_arena_create();
    MoeSafetensors *s = MOE_NEW(arena, MoeSafetensors);
    MoeStShard shard;
    s->arena = arena;
    MoeStatus st = moe_st_shard_read(arena, f, &shard);
    if (st) {
        moe_st_close(s);
        return st;
    }
    MOE_PUSH(arena, s->shards, s->n_shards, s->cap_shards, shard);
    take_all(s);
    build_table(s);
    *out = s;
    return NULL;
}

void moe_st_close(MoeSafetensors *s) {
    if (!s)
        return;
    for (size_t i = 0; i < s->n_shards; i++)
        moe_st_shard_close(&s->shards[i]);
    moe_arena_destroy(s->arena); /* holds *s */
}

size_t moe_st_count(const MoeSafetensors *s) {
    return s->n;
}

const MoeStTensor *moe_st_at(const MoeSafetensors *s, size_t i) {
    MOE_ASSERT(i < s->n, "tensor %zu of %zu", i, s->n);
    return s->tensors[i];
}

const MoeStTensor *moe_st_find(const MoeSafetensors *s, const char *name) {
    uint32_t slot = s->slots[slot_of(s, name)];
    return slot ? s->tensors[slot - 1] : NULL;
}

const char *moe_st_metadata(const MoeSafetensors *s, const char *key) {
    return s->n_shards ? json_string_value(json_object_get(s->shards[0].metadata, key)) : NULL;
}
