// A stand-in for TensorFlow Serving: loads a SavedModel through the C API alone, so that nothing of
// Python, Keras or tfrec_efficient is there to help, and prints one output tensor.
//
//   saved_model_client MODEL_DIR OP_LIBRARY|- OUTPUT_TENSOR INPUT_TENSOR=TYPE[SHAPE]:v1,v2,...
//
// Tensors are named as in the graph, such as "serving_default_ids:0". TYPE is int64, int32, float
// or string; without [SHAPE] the values are a vector. A string cannot contain a comma.
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

// Ranks and dimensions are limited so that the number of elements cannot overflow.
enum { kMaxInputs = 64, kMaxRank = 3, kMaxDim = 1 << 20 };

typedef struct {
  TF_Status* status;
  TF_Library* library;
  TF_Graph* graph;
  TF_SessionOptions* options;
  TF_Session* session;
  int input_count;
  TF_Output input_tensors[kMaxInputs];
  TF_Tensor* inputs[kMaxInputs];
  TF_Tensor* output;
} Client;

static bool Fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("saved_model_client: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  return false;
}

static bool IsOk(const TF_Status* status) {
  return TF_GetCode(status) == TF_OK || Fail("%s", TF_Message(status));
}

// Reads "2,3]". Returns the rank, or -1 where the text is no shape.
static int ParseShape(const char* text, int64_t* dims) {
  if (strcmp(text, "]") == 0) return 0;
  for (int rank = 0; rank < kMaxRank; ++rank) {
    char* end;
    dims[rank] = strtoll(text, &end, 10);
    if (end == text || dims[rank] < 0 || dims[rank] > kMaxDim) return -1;
    if (strcmp(end, "]") == 0) return rank + 1;
    if (*end != ',') return -1;
    text = end + 1;
  }
  return -1;
}

static bool SetElement(TF_DataType dtype, const char* text, int64_t i, void* data) {
  if (dtype == TF_STRING) {
    // The text is part of argv, which outlives the tensor: a view leaves nothing to free.
    TF_TString* element = (TF_TString*)data + i;
    TF_StringInit(element);
    TF_StringAssignView(element, text, strlen(text));
    return true;
  }
  char* end;
  if (dtype == TF_FLOAT) {
    ((float*)data)[i] = strtof(text, &end);
    return end != text && *end == '\0';
  }
  errno = 0;
  const long long value = strtoll(text, &end, 10);
  if (end == text || *end != '\0' || errno != 0) return false;
  if (dtype == TF_INT64) {
    ((int64_t*)data)[i] = value;
    return true;
  }
  ((int32_t*)data)[i] = (int32_t)value;
  return value == (int32_t)value;
}

// Makes a tensor of "int64[2,3]:1,2,3,4,5,6", which is cut into pieces on the way.
static bool ParseTensor(char* text, TF_Tensor** tensor) {
  char* values = strchr(text, ':');
  if (!values) return Fail("expected TYPE:VALUES, got \"%s\"", text);
  *values++ = '\0';
  int64_t count = 1;
  for (const char* c = values; *c; ++c) count += *c == ',';

  int64_t dims[kMaxRank] = {count};
  int rank = 1;
  char* shape = strchr(text, '[');
  if (shape) {
    *shape++ = '\0';
    rank = ParseShape(shape, dims);
    if (rank < 0) return Fail("bad shape \"[%s\"", shape);
    int64_t size = 1;
    for (int i = 0; i < rank; ++i) size *= dims[i];
    if (size == 0 && *values == '\0') count = 0;
    if (size != count) return Fail("%lld values for shape \"[%s\"", (long long)count, shape);
  }

  const char* const names[] = {"int64", "int32", "float", "string"};
  const TF_DataType dtypes[] = {TF_INT64, TF_INT32, TF_FLOAT, TF_STRING};
  int type = 0;
  while (type < 4 && strcmp(text, names[type]) != 0) ++type;
  if (type == 4) return Fail("unknown type \"%s\"", text);
  const TF_DataType dtype = dtypes[type];
  const size_t element_size = dtype == TF_STRING ? sizeof(TF_TString) : TF_DataTypeSize(dtype);
  *tensor = TF_AllocateTensor(dtype, dims, rank, (size_t)count * element_size);
  if (!*tensor) return Fail("out of memory");
  for (int64_t i = 0; i < count; ++i) {
    char* end = values + strcspn(values, ",");
    char* next = end + (*end == ',');
    *end = '\0';
    if (!SetElement(dtype, values, i, TF_TensorData(*tensor))) {
      return Fail("\"%s\" is no %s", values, text);
    }
    values = next;
  }
  return true;
}

// Finds "operation:index", whose colon is overwritten.
static bool FindTensor(TF_Graph* graph, char* name, TF_Output* tensor) {
  char* colon = strrchr(name, ':');
  if (!colon) return Fail("expected OPERATION:INDEX, got \"%s\"", name);
  *colon = '\0';
  tensor->oper = TF_GraphOperationByName(graph, name);
  tensor->index = atoi(colon + 1);
  const bool exists =
      tensor->oper && tensor->index >= 0 && tensor->index < TF_OperationNumOutputs(tensor->oper);
  return exists || Fail("the graph has no tensor \"%s:%s\"", name, colon + 1);
}

static bool Load(Client* client, const char* model_dir, const char* op_library) {
  if (strcmp(op_library, "-") != 0) {
    client->library = TF_LoadLibrary(op_library, client->status);
    if (!IsOk(client->status)) return false;
  }
  const char* tag = "serve";
  client->session = TF_LoadSessionFromSavedModel(client->options, NULL, model_dir, &tag, 1,
                                                 client->graph, NULL, client->status);
  return IsOk(client->status);
}

static bool Predict(Client* client, char* output_name, char** input_arguments) {
  TF_Output output_tensor;
  if (!FindTensor(client->graph, output_name, &output_tensor)) return false;
  for (int i = 0; i < client->input_count; ++i) {
    char* equals = strchr(input_arguments[i], '=');
    if (!equals) return Fail("expected INPUT=TYPE:VALUES, got \"%s\"", input_arguments[i]);
    *equals = '\0';
    if (!FindTensor(client->graph, input_arguments[i], &client->input_tensors[i]) ||
        !ParseTensor(equals + 1, &client->inputs[i])) {
      return false;
    }
  }
  TF_SessionRun(client->session, NULL, client->input_tensors, client->inputs, client->input_count,
                &output_tensor, &client->output, 1, NULL, 0, NULL, client->status);
  if (!IsOk(client->status)) return false;
  if (TF_TensorType(client->output) != TF_FLOAT) return Fail("the output is not of type float");
  const float* values = TF_TensorData(client->output);
  const int64_t count = TF_TensorElementCount(client->output);
  for (int64_t i = 0; i < count; ++i) printf("%.9g\n", values[i]);
  return true;
}

static bool Free(Client* client) {
  bool is_ok = true;
  for (int i = 0; i < client->input_count; ++i) TF_DeleteTensor(client->inputs[i]);
  TF_DeleteTensor(client->output);
  if (client->session) {
    TF_CloseSession(client->session, client->status);
    is_ok = IsOk(client->status);
    TF_DeleteSession(client->session, client->status);
    is_ok = IsOk(client->status) && is_ok;
  }
  TF_DeleteSessionOptions(client->options);
  TF_DeleteGraph(client->graph);
  if (client->library) TF_DeleteLibraryHandle(client->library);
  TF_DeleteStatus(client->status);
  return is_ok;
}

int main(int argc, char** argv) {
  if (argc < 5 || argc > 4 + kMaxInputs) {
    Fail("usage: MODEL_DIR OP_LIBRARY|- OUTPUT_TENSOR INPUT_TENSOR=TYPE[SHAPE]:VALUES ...");
    return EXIT_FAILURE;
  }
  Client client = {.status = TF_NewStatus(),
                   .graph = TF_NewGraph(),
                   .options = TF_NewSessionOptions(),
                   .input_count = argc - 4};
  bool is_ok = Load(&client, argv[1], argv[2]) && Predict(&client, argv[3], argv + 4);
  is_ok = Free(&client) && is_ok;
  return is_ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
