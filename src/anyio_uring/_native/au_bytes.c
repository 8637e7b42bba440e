/* New bytes objects whose content nobody has set: the kernel is about to.
 *
 * bytes(n) in Python writes n zeros first, and a batch of 256 times 4 KiB then goes through the
 * cache twice: 1.2 us a read.  This is the one file of the shim that knows Python.
 */
#define Py_LIMITED_API 0x030a0000
#include <Python.h>

#include <stdint.h>

#include "au_ring.h"

int au_new_bytes(uintptr_t list, const char *lengths, char *addresses, uint32_t count)
{
    PyObject *objects = (PyObject *)list;
    const uint32_t *length = (const uint32_t *)(const void *)lengths;
    uint64_t *address = (uint64_t *)(void *)addresses;
    int ret = 0;

    PyGILState_STATE state = PyGILState_Ensure(); /* cffi has released it */
    for (uint32_t i = 0; i < count; i++) {
        PyObject *object = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length[i]);
        if (object == NULL) {
            PyErr_Clear();
            ret = -1;
            break;
        }
        address[i] = (uint64_t)(uintptr_t)PyBytes_AsString(object);
        PyList_SetItem(objects, (Py_ssize_t)i, object); /* takes the reference */
    }
    PyGILState_Release(state);
    return ret;
}
