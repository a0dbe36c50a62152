/* coffre.codec._kernel: the Python face of the kernel. All checking of arguments happens here. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernel.h"

/* Below this many bytes the work is shorter than giving up and taking back the interpreter lock. */
#define RELEASE_BYTES_MIN (32 * 1024)
#define SHARDS_ON_STACK 24

static const simd_tier *active_tier;

/* ---- buffers -------------------------------------------------------------------------------------------- */

/* Every buffer one call holds, and the shard pointers into them. Shards 0..source_count-1 of the arrays are the
 * sources, the targets follow. Views and pointers differ in number when one buffer holds several shards. */
typedef struct {
    Py_buffer *views;
    const uint8_t **shards;
    size_t view_count, size;   /* `size` is that of one shard */
    Py_buffer views_on_stack[SHARDS_ON_STACK];
    const uint8_t *shards_on_stack[SHARDS_ON_STACK];
} shard_set;

static int shard_set_open(shard_set *set, size_t shard_count)
{
    set->view_count = set->size = 0;
    set->views = set->views_on_stack;
    set->shards = set->shards_on_stack;
    if (shard_count <= SHARDS_ON_STACK)
        return 0;
    set->views = PyMem_New(Py_buffer, shard_count);
    set->shards = PyMem_New(const uint8_t *, shard_count);
    if (set->views != NULL && set->shards != NULL)
        return 0;
    PyMem_Free(set->views);
    PyMem_Free((void *)set->shards);
    PyErr_NoMemory();
    return -1;
}

static void shard_set_close(shard_set *set)
{
    while (set->view_count > 0)
        PyBuffer_Release(&set->views[--set->view_count]);
    if (set->views != set->views_on_stack) {
        PyMem_Free(set->views);
        PyMem_Free((void *)set->shards);
    }
}

/* What to call a buffer in an error: "source shard 3", "segment". A negative index leaves the number out. */
typedef struct {
    const char *role;
    int index;
} label;

static PyObject *label_text(label of)
{
    return of.index < 0 ? PyUnicode_FromString(of.role) : PyUnicode_FromFormat("%s %d", of.role, of.index);
}

static void raise_labelled(PyObject *type, label of, const char *problem)
{
    PyObject *text = label_text(of);
    if (text == NULL)
        return;
    PyErr_Format(type, "%U %s", text, problem);
    Py_DECREF(text);
}

static int get_buffer(PyObject *object, Py_buffer *view, int writable, label of)
{
    if (!PyObject_CheckBuffer(object)) {
        PyObject *text = label_text(of);
        if (text != NULL)
            PyErr_Format(PyExc_TypeError, "%U must be a buffer, not %.100s", text, Py_TYPE(object)->tp_name);
        Py_XDECREF(text);
        return -1;
    }
    if (PyObject_GetBuffer(object, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) == 0)
        return 0;
    if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_ValueError))
        return -1;
    PyErr_Clear();
    if (writable && PyObject_GetBuffer(object, view, PyBUF_SIMPLE) == 0) {
        PyBuffer_Release(view);
        raise_labelled(PyExc_ValueError, of, "is read-only");
        return -1;
    }
    PyErr_Clear();
    raise_labelled(PyExc_ValueError, of, "is not a contiguous buffer, or is closed");
    return -1;
}

static int add_view(shard_set *set, PyObject *object, int writable, label of)
{
    if (get_buffer(object, &set->views[set->view_count], writable, of) < 0)
        return -1;
    set->view_count++;
    return 0;
}

/* True when two ranges share a byte. Addresses are compared as integers: the ranges are unrelated objects. */
static int overlap(const uint8_t *a, const uint8_t *b, size_t size)
{
    uintptr_t left = (uintptr_t)a, right = (uintptr_t)b;
    return size > 0 && left < right + size && right < left + size;
}

/* ---- the Transform type --------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    transform core;
    uint8_t sources[SHARDS_MAX], targets[SHARDS_MAX];
} TransformObject;

static int copy_shard_indexes(const Py_buffer *from, uint8_t *to, const char *role, int distinct)
{
    uint8_t seen[SHARDS_MAX] = {0};
    const uint8_t *indexes = from->buf;
    if (from->len > SHARDS_MAX) {
        PyErr_Format(PyExc_ValueError, "there are at most %d %s shards, not %zd", SHARDS_MAX, role, from->len);
        return -1;
    }
    for (Py_ssize_t i = 0; i < from->len; i++) {
        if (distinct && seen[indexes[i]]++) {
            PyErr_Format(PyExc_ValueError, "%s shard %d is given twice", role, indexes[i]);
            return -1;
        }
        to[i] = indexes[i];
    }
    return 0;
}

static const simd_tier *tier_named(const char *name)
{
    if (name == NULL)
        return active_tier;
    const simd_tier *found = tier_by_name(name);
    if (found == NULL)
        PyErr_Format(PyExc_ValueError, "the codec tier '%.50s' is not available on this machine", name);
    return found;
}

static PyObject *Transform_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sources", "targets", "tier", NULL};
    Py_buffer sources, targets;
    const char *tier_name = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*y*|z:Transform", names, &sources, &targets, &tier_name))
        return NULL;
    TransformObject *self = NULL;
    const simd_tier *tier = tier_named(tier_name);
    if (tier == NULL)
        goto done;
    if (sources.len == 0) {
        PyErr_SetString(PyExc_ValueError, "at least one source shard is needed");
        goto done;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    self = (TransformObject *)alloc(type, 0);
    if (self == NULL)
        goto done;
    if (copy_shard_indexes(&sources, self->sources, "source", 1) < 0 ||
        copy_shard_indexes(&targets, self->targets, "target", 1) < 0)
        Py_CLEAR(self);
    else if (transform_init(&self->core, tier, self->sources, (size_t)sources.len, self->targets,
                            (size_t)targets.len) < 0) {
        Py_CLEAR(self);
        PyErr_NoMemory();
    }
done:
    PyBuffer_Release(&sources);
    PyBuffer_Release(&targets);
    return (PyObject *)self;
}

static void Transform_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    transform_free(&((TransformObject *)object)->core);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

/* The label of shard `position` among sources then targets. */
static label shard_label(const TransformObject *self, size_t position)
{
    if (position < self->core.source_count)
        return (label){"input shard", self->sources[position]};
    return (label){"output shard", self->targets[position - self->core.source_count]};
}

static int check_overlaps(const TransformObject *self, const shard_set *set)
{
    size_t count = self->core.source_count + self->core.target_count;
    for (size_t target = self->core.source_count; target < count; target++)
        for (size_t other = 0; other < target; other++)
            if (overlap(set->shards[target], set->shards[other], set->size)) {
                PyObject *a = label_text(shard_label(self, target)), *b = label_text(shard_label(self, other));
                if (a != NULL && b != NULL)
                    PyErr_Format(PyExc_ValueError, "%U overlaps %U", a, b);
                Py_XDECREF(a);
                Py_XDECREF(b);
                return -1;
            }
    return 0;
}

/* The CRCs of all shards, and their hashes one after the other. */
static PyObject *checks_of(const uint32_t *crcs, PyObject *hashes, size_t count)
{
    PyObject *numbers = PyTuple_New((Py_ssize_t)count);
    for (size_t i = 0; numbers != NULL && i < count; i++) {
        PyObject *crc = PyLong_FromUnsignedLong(crcs[i]);
        if (crc == NULL)
            Py_CLEAR(numbers);
        else
            PyTuple_SET_ITEM(numbers, (Py_ssize_t)i, crc);
    }
    PyObject *result = numbers == NULL ? NULL : PyTuple_Pack(2, numbers, hashes);
    Py_XDECREF(numbers);
    return result;
}

/* Applies the transform to an opened and checked set; returns CRCs and hashes, none when none are wanted. */
static PyObject *apply(const TransformObject *self, shard_set *set, int want_checks)
{
    uint32_t crcs[2 * SHARDS_MAX];
    size_t count = self->core.source_count + self->core.target_count;
    uint8_t *const *targets = (uint8_t *const *)(set->shards + self->core.source_count);
    PyObject *hashes = NULL, *result = NULL;
    hashing hash = {0};
    hashes = PyBytes_FromStringAndSize(NULL, want_checks ? (Py_ssize_t)(count * HASH_BYTES) : 0);
    if (hashes == NULL)
        return NULL;
    if (want_checks && hashing_init(&hash, self->core.tier->hash, count, set->size) < 0) {
        PyErr_NoMemory();
        goto done;
    }
    PyThreadState *released = set->size * count < RELEASE_BYTES_MIN ? NULL : PyEval_SaveThread();
    transform_apply(&self->core, set->shards, targets, set->size, want_checks ? crcs : NULL,
                    want_checks ? &hash : NULL);
    if (want_checks)
        hashing_end(&hash, set->shards, (uint8_t *)PyBytes_AS_STRING(hashes));
    if (released != NULL)
        PyEval_RestoreThread(released);
    result = checks_of(crcs, hashes, want_checks ? count : 0);
done:
    hashing_free(&hash);
    Py_XDECREF(hashes);
    return result;
}

/* Opens one buffer per item of `sequence` as the shards from position `first` on. */
static int add_shards(const TransformObject *self, shard_set *set, PyObject *sequence, size_t first, size_t count)
{
    const char *role = first == 0 ? "input" : "output";
    if (!PySequence_Check(sequence)) {
        PyErr_Format(PyExc_TypeError, "the %s shards must be a sequence of buffers, not %.100s", role,
                     Py_TYPE(sequence)->tp_name);
        return -1;
    }
    PyObject *items = PySequence_Tuple(sequence);   /* a copy: opening a buffer may run code that edits a list */
    if (items == NULL)
        return -1;
    int status = -1;
    if ((size_t)PyTuple_GET_SIZE(items) != count) {
        PyErr_Format(PyExc_ValueError, "%zu %s shards are needed, not %zd", count, role, PyTuple_GET_SIZE(items));
        goto done;
    }
    for (size_t i = 0; i < count; i++) {
        label of = shard_label(self, first + i);
        if (add_view(set, PyTuple_GET_ITEM(items, (Py_ssize_t)i), first > 0, of) < 0)
            goto done;
        const Py_buffer *view = &set->views[first + i];
        if (first + i == 0)
            set->size = (size_t)view->len;
        if ((size_t)view->len != set->size) {
            PyErr_Format(PyExc_ValueError, "%s %d has %zd bytes but %s %d has %zu", of.role, of.index, view->len,
                         shard_label(self, 0).role, shard_label(self, 0).index, set->size);
            goto done;
        }
        set->shards[first + i] = view->buf;
    }
    status = 0;
done:
    Py_DECREF(items);
    return status;
}

/* Parses (first, second, checks) of both methods; `checks` may be left out. */
static int parse_call(const char *method, PyObject *const *args, Py_ssize_t count, int *want_checks)
{
    if (count < 2 || count > 3) {
        PyErr_Format(PyExc_TypeError, "%s() takes 2 or 3 arguments, not %zd", method, count);
        return -1;
    }
    *want_checks = count == 3 ? PyObject_IsTrue(args[2]) : 1;
    return *want_checks < 0 ? -1 : 0;
}

static PyObject *Transform_apply(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    const TransformObject *self = (TransformObject *)object;
    size_t sources = self->core.source_count, targets = self->core.target_count;
    shard_set set;
    int want_checks;
    if (parse_call("apply", args, count, &want_checks) < 0 || shard_set_open(&set, sources + targets) < 0)
        return NULL;
    PyObject *result = NULL;
    if (add_shards(self, &set, args[0], 0, sources) == 0 && add_shards(self, &set, args[1], sources, targets) == 0 &&
        check_overlaps(self, &set) == 0)
        result = apply(self, &set, want_checks);
    shard_set_close(&set);
    return result;
}

/* Cuts the two opened buffers into shards. */
static int cut_segment(const TransformObject *self, shard_set *set)
{
    size_t sources = self->core.source_count, targets = self->core.target_count;
    const Py_buffer *segment = &set->views[0], *parity = &set->views[1];
    if ((size_t)segment->len % sources != 0) {
        PyErr_Format(PyExc_ValueError, "segment has %zd bytes, which is not a multiple of %zu", segment->len, sources);
        return -1;
    }
    set->size = (size_t)segment->len / sources;
    if ((size_t)parity->len / (targets > 0 ? targets : 1) != set->size * (targets > 0) ||
        (size_t)parity->len % (targets > 0 ? targets : 1) != 0) {
        PyErr_Format(PyExc_ValueError, "parity has %zd bytes; %zu cells of %zu bytes are needed", parity->len,
                     targets, set->size);
        return -1;
    }
    for (size_t i = 0; i < sources; i++)
        set->shards[i] = (const uint8_t *)segment->buf + i * set->size;
    for (size_t i = 0; i < targets; i++)
        set->shards[sources + i] = (const uint8_t *)parity->buf + i * set->size;
    return 0;
}

static int check_segment_overlap(const shard_set *set)
{
    uintptr_t segment = (uintptr_t)set->views[0].buf, parity = (uintptr_t)set->views[1].buf;
    size_t segment_size = (size_t)set->views[0].len, parity_size = (size_t)set->views[1].len;
    if (parity_size > 0 && segment < parity + parity_size && parity < segment + segment_size) {
        PyErr_SetString(PyExc_ValueError, "parity overlaps segment");
        return -1;
    }
    return 0;
}

static PyObject *Transform_apply_segment(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    const TransformObject *self = (TransformObject *)object;
    size_t shards = self->core.source_count + self->core.target_count;
    shard_set set;
    int want_checks;
    if (parse_call("apply_segment", args, count, &want_checks) < 0 ||
        shard_set_open(&set, shards < 2 ? 2 : shards) < 0)
        return NULL;
    PyObject *result = NULL;
    if (add_view(&set, args[0], 0, (label){"segment", -1}) == 0 &&
        add_view(&set, args[1], 1, (label){"parity", -1}) == 0 && cut_segment(self, &set) == 0 &&
        check_segment_overlap(&set) == 0)
        result = apply(self, &set, want_checks);
    shard_set_close(&set);
    return result;
}

static PyObject *Transform_coefficients(PyObject *object, void *Py_UNUSED(closure))
{
    const transform *core = &((TransformObject *)object)->core;
    return PyBytes_FromStringAndSize((const char *)core->coefficients,
                                     (Py_ssize_t)(core->source_count * core->target_count));
}

static PyObject *Transform_tier(PyObject *object, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(((TransformObject *)object)->core.tier->name);
}

static PyMethodDef transform_methods[] = {
    {"apply", (PyCFunction)(void (*)(void))Transform_apply, METH_FASTCALL, NULL},
    {"apply_segment", (PyCFunction)(void (*)(void))Transform_apply_segment, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef transform_getset[] = {
    {"coefficients", Transform_coefficients, NULL, NULL, NULL},
    {"tier", Transform_tier, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot transform_slots[] = {
    {Py_tp_new, Transform_new},
    {Py_tp_dealloc, Transform_dealloc},
    {Py_tp_methods, transform_methods},
    {Py_tp_getset, transform_getset},
    {0, NULL},
};

static PyType_Spec transform_spec = {
    .name = "coffre.codec._kernel.Transform",
    .basicsize = sizeof(TransformObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = transform_slots,
};

/* ---- functions ------------------------------------------------------------------------------------------ */

static PyObject *crc32c_of(PyObject *data, uint32_t value, crc32c_update update)
{
    Py_buffer view;
    if (get_buffer(data, &view, 0, (label){"data", -1}) < 0)
        return NULL;
    if (view.len < RELEASE_BYTES_MIN) {
        value = ~update(~value, view.buf, (size_t)view.len);
    } else {
        Py_BEGIN_ALLOW_THREADS
        value = ~update(~value, view.buf, (size_t)view.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(value);
}

static int crc_value(PyObject *object, uint32_t *value)
{
    unsigned long given = PyLong_AsUnsignedLong(object);
    if (given == (unsigned long)-1 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return -1;
        PyErr_Clear();
        given = ULONG_MAX;
    }
    if (given > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "value must be between 0 and 2**32 - 1");
        return -1;
    }
    *value = (uint32_t)given;
    return 0;
}

static PyObject *kernel_crc32c(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count,
                               PyObject *keywords)
{
    Py_ssize_t keyword_count = keywords == NULL ? 0 : PyTuple_GET_SIZE(keywords);
    uint32_t value = 0;
    if (count < 1 || count + keyword_count > 2 ||
        (keyword_count == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(keywords, 0), "value") != 0)) {
        PyErr_SetString(PyExc_TypeError, "crc32c() takes data and an optional value");
        return NULL;
    }
    if (count + keyword_count == 2 && crc_value(args[1], &value) < 0)
        return NULL;
    return crc32c_of(args[0], value, active_tier->crc32c);
}

static PyObject *kernel_crc32c_of_tier(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *name;
    PyObject *data, *start;
    uint32_t value;
    if (!PyArg_ParseTuple(args, "sOO:crc32c_of_tier", &name, &data, &start) || crc_value(start, &value) < 0)
        return NULL;
    const simd_tier *tier = tier_named(name);
    return tier == NULL ? NULL : crc32c_of(data, value, tier->crc32c);
}

/* The hash of one buffer, by the lanes of `tier`. */
static PyObject *hash_of(PyObject *data, const simd_tier *tier)
{
    Py_buffer view;
    if (get_buffer(data, &view, 0, (label){"data", -1}) < 0)
        return NULL;
    PyObject *result = PyBytes_FromStringAndSize(NULL, HASH_BYTES);
    hashing hash = {0};
    if (result != NULL && hashing_init(&hash, tier->hash, 1, (size_t)view.len) < 0) {
        PyErr_NoMemory();
        Py_CLEAR(result);
    }
    if (result != NULL) {
        const uint8_t *shard = view.buf;
        PyThreadState *released = view.len < RELEASE_BYTES_MIN ? NULL : PyEval_SaveThread();
        hashing_end(&hash, &shard, (uint8_t *)PyBytes_AS_STRING(result));
        if (released != NULL)
            PyEval_RestoreThread(released);
    }
    hashing_free(&hash);
    PyBuffer_Release(&view);
    return result;
}

static PyObject *kernel_blake3_128(PyObject *Py_UNUSED(module), PyObject *data)
{
    return hash_of(data, active_tier);
}

static PyObject *kernel_blake3_128_of_tier(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *name;
    PyObject *data;
    if (!PyArg_ParseTuple(args, "sO:blake3_128_of_tier", &name, &data))
        return NULL;
    const simd_tier *tier = tier_named(name);
    return tier == NULL ? NULL : hash_of(data, tier);
}

static PyObject *kernel_tiers(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    PyObject *names = PyTuple_New((Py_ssize_t)tier_count);
    for (size_t i = 0; names != NULL && i < tier_count; i++) {
        PyObject *name = PyUnicode_FromString(tiers_found[i].name);
        if (name == NULL)
            Py_CLEAR(names);
        else
            PyTuple_SET_ITEM(names, (Py_ssize_t)i, name);
    }
    return names;
}

static PyObject *kernel_set_active_tier(PyObject *Py_UNUSED(module), PyObject *name)
{
    const char *text = PyUnicode_AsUTF8(name);
    const simd_tier *tier = text == NULL ? NULL : tier_named(text);
    if (tier == NULL)
        return NULL;
    active_tier = tier;
    Py_RETURN_NONE;
}

static PyMethodDef kernel_methods[] = {
    {"crc32c", (PyCFunction)(void (*)(void))kernel_crc32c, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("crc32c(data, value=0)\n--\n\nCRC32C (RFC 3720) of data, continuing from value.")},
    {"crc32c_of_tier", kernel_crc32c_of_tier, METH_VARARGS, NULL},
    {"blake3_128", kernel_blake3_128, METH_O, PyDoc_STR("blake3_128(data, /)\n--\n\nThe first 16 bytes of BLAKE3 of data.")},
    {"blake3_128_of_tier", kernel_blake3_128_of_tier, METH_VARARGS, NULL},
    {"tiers", kernel_tiers, METH_NOARGS, NULL},
    {"set_active_tier", kernel_set_active_tier, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static int kernel_exec(PyObject *module)
{
    if (active_tier == NULL) {   /* under the import lock, once per process */
        gf_init();
        crc32c_init();
        tiers_init();
        active_tier = &tiers_found[0];
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &transform_spec, NULL);
    if (type == NULL)
        return -1;
    int status = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return status;
}

static PyModuleDef_Slot kernel_slots[] = {
    {Py_mod_exec, kernel_exec},
    {0, NULL},
};

static struct PyModuleDef kernel_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "coffre.codec._kernel",
    .m_methods = kernel_methods,
    .m_slots = kernel_slots,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModuleDef_Init(&kernel_module);
}
