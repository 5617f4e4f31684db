// Places in memory where Python keeps what it keeps, and whether they still hold what they held:
// python/fastinfer/places.py says what for. Only identities are compared, a few nanoseconds a
// place; of the user's code what computes an attribute runs here, and nothing else.
#include <cstring>

#include "python/bind.h"

namespace fastinfer::python {
namespace {

// What an owner is looked at for; places.py has the same numbers.
enum class Place : long {
  object = 0,     // an object: its type and its instance dictionary, or None
  dict = 1,       // a dictionary: all of it, keys and values by turns; NotImplemented is any value
  list = 2,       // a list: its entries
  item = 3,       // a dictionary or another mapping: a key and its value
  attribute = 4,  // any object: the name of an attribute and its value
  absent = 5,     // a dictionary or another mapping: a key that it has not
};

// nullptr where there is none, which nothing is found to be.
PyObject* at(PyObject* content, Py_ssize_t i) {
  return PyTuple_Check(content) && i < PyTuple_GET_SIZE(content) ? PyTuple_GET_ITEM(content, i)
                                                                 : nullptr;
}

bool is_new_reference(PyObject* found, PyObject* expected) {
  Py_XDECREF(found);  // `expected` keeps what it is compared with alive
  return found != nullptr && found == expected;
}

bool holds_dict(PyObject* dict, PyObject* content) {
  if (!PyDict_Check(dict) || PyDict_Size(dict) * 2 != PyObject_Size(content)) return false;
  PyObject *key, *value;
  for (Py_ssize_t position = 0, i = 0; PyDict_Next(dict, &position, &key, &value); i += 2) {
    PyObject* const expected = at(content, i + 1);
    if (key != at(content, i) || (value != expected && expected != Py_NotImplemented)) return false;
  }
  return true;
}

bool holds_list(PyObject* list, PyObject* content) {
  if (!PyList_Check(list) || PyList_GET_SIZE(list) != PyObject_Size(content)) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
    if (PyList_GET_ITEM(list, i) != at(content, i)) return false;
  }
  return true;
}

bool holds(Place place, PyObject* owner, PyObject* content) {
  PyObject *const first = at(content, 0), *const second = at(content, 1);
  switch (place) {
    case Place::object:
      return reinterpret_cast<PyObject*>(Py_TYPE(owner)) == first &&
             (second == Py_None ||
              is_new_reference(PyObject_GenericGetDict(owner, nullptr), second));
    case Place::dict: return holds_dict(owner, content);
    case Place::list: return holds_list(owner, content);
    case Place::item:
      if (!first) return false;
      if (PyDict_Check(owner)) {
        PyObject* found = PyDict_GetItemWithError(owner, first);
        return found && found == second;
      }
      return is_new_reference(PyObject_GetItem(owner, first), second);
    case Place::absent:
      if (!first) return false;
      if (PyDict_Check(owner)) return PyDict_Contains(owner, first) == 0;
      return PyMapping_Check(owner) && PySequence_Contains(owner, first) == 0;
    case Place::attribute: return first && is_new_reference(PyObject_GetAttr(owner, first), second);
  }
  return false;
}

// What CPython gives a dictionary at every change, of all dictionaries to it alone (PEP 509); newer
// ones have it no more, and its entries are compared every time.
uint64_t version_of(Place place, PyObject* owner) {
#if PY_VERSION_HEX < 0x030C0000
  const bool is_about_entries =
      place == Place::dict || place == Place::item || place == Place::absent;
  if (is_about_entries && PyDict_Check(owner)) {
    return reinterpret_cast<PyDictObject*>(owner)->ma_version_tag;
  }
#endif
  return 0;
}

bool unchanged(const py::tuple& places, const py::bytearray& versions) {
#ifdef Py_GIL_DISABLED
  return false;  // what is borrowed here may go meanwhile
#endif
  const Py_ssize_t count = PyTuple_GET_SIZE(places.ptr()) / 3;
  if (PyByteArray_GET_SIZE(versions.ptr()) != count * Py_ssize_t(sizeof(uint64_t))) {
    throw py::value_error("versions: want eight bytes a place");
  }
  char* version = PyByteArray_AS_STRING(versions.ptr());
  for (Py_ssize_t i = 0; i < count; ++i, version += sizeof(uint64_t)) {
    const auto word = [&](Py_ssize_t j) { return PyTuple_GET_ITEM(places.ptr(), 3 * i + j); };
    const Place place = Place(PyLong_AsLong(word(0)));
    const uint64_t now = version_of(place, word(1));
    if (now != 0 && std::memcmp(version, &now, sizeof(now)) == 0) continue;
    if (!holds(place, word(1), word(2))) {
      PyErr_Clear();  // what is not there any more has changed
      return false;
    }
    std::memcpy(version, &now, sizeof(now));
  }
  return true;
}

// The values of dictionary entries, dictionaries and keys by turns, None where there is none, and
// `more` after them. If one of them is among `others`, None for all.
py::object values_at(const py::tuple& entries, const py::tuple& more, const py::list& others) {
  const size_t count = entries.size() / 2;
  py::tuple values(count + more.size());
  for (size_t i = 0; i < values.size(); ++i) {
    PyObject* found = nullptr;
    if (i >= count) {
      found = PyTuple_GET_ITEM(more.ptr(), Py_ssize_t(i - count));
    } else if (PyObject* dict = PyTuple_GET_ITEM(entries.ptr(), Py_ssize_t(2 * i));
               PyDict_Check(dict)) {
      found = PyDict_GetItemWithError(dict, PyTuple_GET_ITEM(entries.ptr(), Py_ssize_t(2 * i + 1)));
      PyErr_Clear();  // a key that has no hash
    }
    for (py::handle other : others) {
      if (other.ptr() == found) return py::none();
    }
    values[i] = found ? py::handle(found) : py::none();
  }
  return values;
}

}  // namespace

void bind_places(py::module_& m) {
  m.def("values_at", &values_at, py::arg("entries"), py::arg("more"), py::arg("others"),
        "What is now at dictionaries and their keys, one after another, and more; None if one of "
        "those is one of others, too.");
  m.def(
      "unchanged", &unchanged, py::arg("places"), py::arg("versions"),
      "Whether places, triples of a kind, an owner and its content one after another, are as they "
      "were.");
}

}  // namespace fastinfer::python
