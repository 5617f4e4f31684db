// What the inputs of a call are, but for the numbers in their tensors, as a key to look up:
// python/fastinfer/memory.py says what for. It is made at every call, in a microsecond or two.
#include <algorithm>
#include <vector>

#include "python/bind.h"

namespace fastinfer::python {
namespace {

constexpr int kMostNested = 32;

// Python's names for what a tensor has; they live as long as the process.
struct Names {
  PyObject* layout = PyUnicode_InternFromString("layout");
  PyObject* is_nested = PyUnicode_InternFromString("is_nested");
  PyObject* dict = PyUnicode_InternFromString("__dict__");
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* storage_offset = PyUnicode_InternFromString("storage_offset");
  PyObject* mark = PyUnicode_InternFromString("_dynamo_");  // in the name of a mark of sizes
};

const Names& names() {
  static const Names names;
  return names;
}

py::object owned(PyObject* made) {
  if (!made) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

py::object attribute(py::handle value, PyObject* name) {
  return owned(PyObject_GetAttr(value.ptr(), name));
}

class Signature {
 public:
  Signature(const py::tuple& tensor_types, py::handle layout)
      : tensor_types_(tensor_types), layout_(layout) {}

  // False: of a call with such a value no note is taken.
  bool add(py::handle value, int nested = 0) {
    PyTypeObject* const type = Py_TYPE(value.ptr());
    if (is_tensor(type)) return add_tensor(value);
    if (value.is_none() || type == &PyBool_Type || type == &PyLong_Type ||
        type == &PyUnicode_Type) {
      push(type, value);
      return true;
    }
    if (type == &PyFloat_Type) {  // its bits: -0.0 is not 0.0, and NaN is itself
      push(type, owned(PyObject_CallMethod(value.ptr(), "hex", nullptr)));
      return true;
    }
    const bool is_dict = type == &PyDict_Type;
    if (!is_dict && type != &PyList_Type && type != &PyTuple_Type) return false;
    // What could change while it is gone through is copied.
    const py::object keys = owned(PySequence_Tuple(value.ptr()));
    const py::object entries = is_dict ? owned(PyDict_Values(value.ptr())) : keys;
    const Py_ssize_t count = PyObject_Size(entries.ptr());
    if (is_dict && !all_plain(keys)) return false;
    if (count > 0 || type != &PyTuple_Type) {  // the empty tuple is one wherever it stands
      if (nested == kMostNested || contains(containers_, value)) return false;
      containers_.push_back(value.ptr());
    }
    push(type, is_dict ? keys : py::int_(count));
    for (py::handle entry : entries) {
      if (!add(entry, nested + 1)) return false;
    }
    return true;
  }

  py::tuple key() const {
    py::tuple key(key_.size());
    for (size_t i = 0; i < key_.size(); ++i) key[i] = key_[i];
    return key;
  }

  const py::list& tensors() const { return tensors_; }

 private:
  bool is_tensor(PyTypeObject* type) const {
    for (py::handle known : tensor_types_) {
      if (known.ptr() == reinterpret_cast<PyObject*>(type)) return true;
    }
    return false;
  }

  // Keys that are equal only if they are of one type.
  static bool all_plain(py::handle keys) {
    for (py::handle key : keys) {
      if (!PyUnicode_CheckExact(key.ptr()) && !PyLong_CheckExact(key.ptr())) return false;
    }
    return true;
  }

  static bool contains(const std::vector<PyObject*>& list, py::handle value) {
    return std::find(list.begin(), list.end(), value.ptr()) != list.end();
  }

  bool add_tensor(py::handle value) {
    const Names& n = names();
    if (!attribute(value, n.layout).is(layout_)) return false;
    if (attribute(value, n.is_nested).ptr() != Py_False) return false;
    for (py::handle name : attribute(value, n.dict)) {
      // Attributes of its own that are no marks of sizes.
      if (!PyUnicode_Check(name.ptr()) || PyUnicode_Contains(name.ptr(), n.mark) != 1) return false;
    }
    Py_ssize_t place = 0;  // one tensor twice is told from two
    const Py_ssize_t count = PyList_GET_SIZE(tensors_.ptr());
    while (place < count && PyList_GET_ITEM(tensors_.ptr(), place) != value.ptr()) ++place;
    if (place == count) tensors_.append(value);
    key_.push_back(py::int_(place));
    key_.push_back(attribute(value, n.shape));
    key_.push_back(attribute(value, n.dtype));
    key_.push_back(owned(PyObject_CallMethodNoArgs(value.ptr(), n.storage_offset)));
    return true;
  }

  void push(PyTypeObject* type, py::handle value) {
    key_.push_back(py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(type)));
    key_.push_back(py::reinterpret_borrow<py::object>(value));
  }

  const py::tuple& tensor_types_;
  const py::handle layout_;
  std::vector<py::object> key_;
  std::vector<PyObject*> containers_;
  py::list tensors_;
};

py::object signature(const py::tuple& args, const py::dict& kwargs, const py::tuple& tensor_types,
                     py::handle layout) {
  Signature found(tensor_types, layout);
  if (!found.add(args) || !found.add(kwargs)) return py::none();
  return py::make_tuple(found.key(), found.tensors());
}

}  // namespace

void bind_signature(py::module_& m) {
  m.def("signature", &signature, py::arg("args"), py::arg("kwargs"), py::arg("tensor_types"),
        py::arg("layout"),
        "A hashable key of all that a call's inputs are but for the numbers in tensors, and the "
        "tensors, each once. None where there is something other than tensors of these types and "
        "this layout, plain values, and dicts, lists and tuples of them.");
}

}  // namespace fastinfer::python
