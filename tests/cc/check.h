// Assertions for the tests of the C++ cores, which build with a compiler and nothing else.
//
// CHECK(condition, context...) and its kin end the program at the first failure, and print the
// text and the values of all their arguments: so whatever tells the cases of a loop apart is passed
// as context.
#ifndef TFREC_TESTS_CC_CHECK_H_
#define TFREC_TESTS_CC_CHECK_H_

#include <cmath>
#include <cstdlib>
#include <iomanip>
#include <iostream>

#define CHECK(...) ::tfrec::Check(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)
#define CHECK_EQ(...) ::tfrec::CheckEqual(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)
#define CHECK_NEAR(...) ::tfrec::CheckNear(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)

namespace tfrec {

template <typename... Values>
void Check(const char* file, int line, const char* text, bool condition, const Values&... values) {
  if (condition) return;
  std::cerr << file << ':' << line << ": CHECK(" << text << ") failed; values:" << std::boolalpha
            << std::setprecision(17) << ' ' << condition;
  ((std::cerr << ", " << values), ...);
  std::cerr << std::endl;
  std::exit(1);
}
template <typename A, typename B, typename... Values>
void CheckEqual(const char* file, int line, const char* text, const A& actual, const B& expected,
                const Values&... values) {
  Check(file, line, text, actual == expected, actual, expected, values...);
}
template <typename... Values>
void CheckNear(const char* file, int line, const char* text, double actual, double expected,
               double tolerance, const Values&... values) {
  Check(file, line, text, std::abs(actual - expected) <= tolerance, actual, expected, tolerance,
        values...);
}

}  // namespace tfrec

#endif  // TFREC_TESTS_CC_CHECK_H_
