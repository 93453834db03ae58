/** {@link dev.wirepost.test.WirepostDev} starts {@code wirepost dev} for JUnit tests. */
package dev.wirepost.test;
